"""What a person names -> tree files: a file, standard input, a run's directory or a folder of tree files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from treegrpo_cli.errors import FileError, UserError, said

STEP = re.compile(r"step-(\d+)\.jsonl(?:\.zst)?")


def tree_files(given: Sequence[str | Path], step: int | None = None) -> list[str]:
    """Return the files that `given` names, in its order, those of a folder by step and then by name.

    A run's directory stands for its `trees/`. With `step` only that step's file of each folder is taken. Raises
    UserError for a folder without tree files, or without that step, and for a step of what is no folder.
    """
    return [file for path in given for file in _files_of(str(path), step)]


def _files_of(given: str, step: int | None) -> list[str]:
    path = Path(given)
    if given == "-" or not os.path.isdir(given):
        if step is not None:
            raise UserError(f"--step chooses among the files of a run or a folder; {given!r} is neither")
        return [given]
    folder = path / "trees" if (path / "trees").is_dir() else path
    try:
        files = [file for file in folder.iterdir() if file.name.endswith((".jsonl", ".jsonl.zst"))]
    except OSError as error:
        raise FileError(folder, said(error)) from None
    files = sorted(files, key=lambda file: (step_of(file) is None, step_of(file) or 0, file.name))
    if not files:
        raise FileError(folder, "holds no tree files, .jsonl or .jsonl.zst")
    chosen = files if step is None else [file for file in files if step_of(file) == step]
    if not chosen:
        steps = [number for file in files if (number := step_of(file)) is not None]
        there = f"; there are {min(steps)} to {max(steps)}" if steps else ""
        raise FileError(folder, f"no trees of step {step}{there}")
    return [str(file) for file in chosen]


def step_of(path: Path) -> int | None:
    """The step of a run whose trees a file of this name holds; None of another name."""
    found = STEP.fullmatch(path.name)
    return int(found[1]) if found else None
