"""Work of one rank or of all -> done everywhere, or an error everywhere: no rank waits for one that gave up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError

from treegrpo_cli.errors import FileError, UserError

if TYPE_CHECKING:
    from treegrpo_cli.train.ranks import Ranks

T = TypeVar("T")


class ElsewhereError(FileError):
    """What a rank raises whose own work is done while another's is not; that one says why."""


def on_all(ranks: Ranks, path: str | Path, work: Callable[[], T]) -> T:
    """Return what `work` does once all ranks have done theirs. Raises what it raised, or ElsewhereError.

    `path` is what it is about.
    """
    failure: BaseException | None = None
    try:
        result = work()
    except (OSError, SafetensorError, UserError) as error:
        failure = error
    if ranks.size > 1 and bool(ranks.max(torch.tensor(float(failure is not None), device=ranks.device))):
        failure = failure or ElsewhereError(path, "another trainer rank could not read or write its part")
    if failure is not None:
        raise failure
    return result


def on_first(ranks: Ranks, path: str | Path, work: Callable[[], None]) -> None:
    """Let rank 0 do `work` alone, and the others wait for it."""
    on_all(ranks, path, work if ranks.rank == 0 else lambda: None)
