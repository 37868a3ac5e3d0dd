"""What can be seen of anybody's accounts."""
