"""What can be typed, a command a file: its arguments with their help, and one call of what stands beside."""
