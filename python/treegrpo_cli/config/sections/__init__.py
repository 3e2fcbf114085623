"""The tables of a settings file, one a file: every setting with its default, its limits and its meaning."""
