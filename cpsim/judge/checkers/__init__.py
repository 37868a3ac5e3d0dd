"""One file a checker: what it looks at, and what it finds."""
