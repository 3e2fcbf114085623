"""This machine and a run's settings -> what is right, what is wrong, and what cannot be tried here: `treegrpo doctor`.

Engines and attention paths are tried on a tiny random model that is made on the spot, against the slow and plain way
to compute the same.
"""
