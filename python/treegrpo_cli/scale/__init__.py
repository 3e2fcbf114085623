"""The parts of a run on many processes and machines, under Ray."""
