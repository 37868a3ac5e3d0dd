"""What a user wrote or chose: files and options as values, with messages that name the place."""
