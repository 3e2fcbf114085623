"""Untrusted files -> rows, within limits: questions, corpora, and the lines of tree files."""
