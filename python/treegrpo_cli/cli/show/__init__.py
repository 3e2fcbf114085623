"""Chosen trees -> what is shown of them, one way a file."""
