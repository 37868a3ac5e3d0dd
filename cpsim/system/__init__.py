"""What a process of ours is made of: threads, limits, and the libraries that are installed."""
