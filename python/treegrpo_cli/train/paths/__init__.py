"""Attention paths by name: every file here that defines one registers it.

chains        every leaf a padded row, shared prefixes computed again: the library's own attention
runs          every token once; CPU, and CUDA in bfloat16
flex          every token once through FlexAttention; CUDA
dense         every token once under a mask of all pairs; any device, slow
depth-first   every token once, an edge at a time, with the memory of one path
"""

from importlib import import_module
from pkgutil import iter_modules

from treegrpo_cli.train.paths.base import AttentionPath, Subject, named, reference_path, register, registered

__all__ = ["AttentionPath", "Subject", "named", "reference_path", "register", "registered"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
