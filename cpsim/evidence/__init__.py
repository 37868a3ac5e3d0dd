"""What a replay leaves behind."""
