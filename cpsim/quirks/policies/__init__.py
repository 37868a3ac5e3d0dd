"""What quirks replace: policies whose defaults are the documented behaviour."""
