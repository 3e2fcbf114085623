"""`checkpoint-N/` in a run's folder -> which are whole, a new one in its place, old ones away.

    checkpoint-N             whole and on disk, always
    .checkpoint-N.partial    being written
    .checkpoint-N.replaced   whole; makes room for a new one of its step, and stands in for it after a kill
    .checkpoint-N.removed    being removed

A folder gets and gives up its name by one rename, so that whatever a kill interrupts, no name stands before half a
checkpoint. A symbolic link is no checkpoint: it is neither followed nor removed, unless its name is needed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from treegrpo_cli.errors import FileError, said

STATE_JSON = "training_state.json"
"""What every checkpoint holds."""

NAME = re.compile(r"(?:\.checkpoint-(?P<replaced>\d+)\.replaced|checkpoint-(?P<step>\d+))", re.ASCII)


def step_of(path: Path) -> int | None:
    """The step of a whole checkpoint of this name, or of one that makes room; None of another name."""
    match = NAME.fullmatch(path.name)
    return int(match["step"] or match["replaced"]) if match else None


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the whole checkpoints of a run by ascending step; half-written ones are not among them.

    Where a kill came while a checkpoint was being replaced, the one that made room is listed under its hidden name.
    """
    found: dict[int, Path] = {}
    for path in sorted(Path(output_dir).glob("*checkpoint-*")):  # hidden names first: a new one takes their place
        step = step_of(path)
        if step is not None and _is_whole(path):
            found[step] = path
    return [path for _, path in sorted(found.items())]


def partial_of(path: Path) -> Path:
    """Return the folder in which the checkpoint `path` is written."""
    return path.with_name(f".{path.name}.partial")


def put_in_place(path: Path) -> None:
    """Give the folder `partial_of(path)` its name. A checkpoint of that name makes room, and goes when it has one."""
    if _is_whole(path):
        os.rename(path, path.with_name(f".{path.name}.replaced"))
    elif os.path.lexists(path):
        _remove(path)
    os.rename(partial_of(path), path)
    sync(path.parent)
    remove_leftovers(path.parent)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a kill left half-written or half-removed; what had made room goes, or gets its name back."""
    for pattern in (".checkpoint-*.partial", ".checkpoint-*.removed"):
        for path in output_dir.glob(pattern):
            _delete(path)
    for path in output_dir.glob(".checkpoint-*.replaced"):
        named = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        if not os.path.lexists(named) and _is_whole(path):
            os.rename(path, named)
        elif _is_whole(named) or not _is_whole(path):
            _remove(path)


def remove_old_checkpoints(output_dir: str | Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; 0 keeps all. Raises FileError where the disk refuses."""
    for path in checkpoints(output_dir)[: -keep or None] if keep else []:
        try:
            _remove(path)
        except OSError as error:
            raise FileError(path, f"cannot be removed: {said(error)}") from None


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_whole(path: Path) -> bool:
    return not path.is_symlink() and (path / STATE_JSON).is_file()


def _remove(path: Path) -> None:
    """Remove a folder, its name first."""
    removed = path.with_name(f".{path.name.removeprefix('.').removesuffix('.replaced')}.removed")
    if os.path.lexists(removed):
        _delete(removed)
    os.rename(path, removed)
    _delete(removed)


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
