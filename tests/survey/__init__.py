"""Tiny models of the library's causal LM classes, against their rows one by one."""
