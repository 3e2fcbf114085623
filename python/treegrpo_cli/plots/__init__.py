"""Lines of metrics -> curves with intervals, as pictures and in the terminal; a running run, followed."""
