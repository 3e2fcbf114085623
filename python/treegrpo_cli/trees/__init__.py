"""The tree file, and what is read off it: scores, training rows, summaries, drawings."""
