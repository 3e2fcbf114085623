"""Prompts -> trees: the procedure, many trees at once, how turns are written, the journal."""
