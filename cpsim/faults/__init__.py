"""What can go wrong on demand, and when it does."""
