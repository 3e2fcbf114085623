"""Whatever an attention path raises -> the reason why it is not taken.

Kernels fail in ways of their own: an import, a type, a shape that they do not know, a compiler. None of it is parsed,
and all of it means that chains are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from treegrpo_cli.errors import UserError, said
from treegrpo_cli.train.paths import AttentionPath
from treegrpo_cli.train.tree_attention import TreeUnsupportedError


class PathFailedError(Exception):
    """A path that shares could not compute; the message says why, in one line."""


@contextmanager
def blaming(path: AttentionPath) -> Iterator[None]:
    """Turn what is raised into PathFailedError where the path shares; chains are what the library computes itself.

    Memory that runs out, and what the user is told already, fly as they are.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, UserError):
        raise
    except TreeUnsupportedError as error:
        raise PathFailedError(str(error)) from error
    except Exception as error:
        if not path.shares:
            raise
        raise PathFailedError(f"{type(error).__name__}: {said(error)}") from error
