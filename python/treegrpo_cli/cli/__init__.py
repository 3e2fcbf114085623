"""What a person types and sees: commands, drawings on a terminal, exit codes."""
