"""Finished trees <-> the journal beside a tree file, where they wait for the last tree of their prompt.

Each tree is appended when it ends, as one line; a kill loses no more than trees in progress, and at
most half a line, which is dropped on reading. Lines of groups that have gone to the tree file are stale;
the journal is rewritten when they outnumber the rest, and removed at the end.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError
from treegrpo_cli.trees.tree_file import TreeRecord

TreeId = tuple[str, int]
"""(prompt_id, tree_id)."""

COMPACT_AT = 256


class Journal:
    """Trees whose prompt is not complete yet, by prompt_id and tree_id, in memory and on disk."""

    def __init__(self, tree_file: Path, *, resume: bool) -> None:
        self.path = tree_file.with_name(f"{tree_file.name}.journal")
        self.trees: dict[str, dict[int, TreeRecord]] = {}
        self._num_stale = 0
        if resume and self.path.exists():
            self._read()
        try:
            self._rewrite()
        except OSError as error:
            raise FileError(self.path, error.strerror or str(error)) from None

    def add(self, record: TreeRecord) -> None:
        """Append a finished tree; it is on disk when this returns. Raises FileError where the disk is full."""
        self.trees.setdefault(record.prompt_id, {})[record.tree_id] = record
        try:
            self._file.write(record.to_json() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FileError(self.path, error.strerror or str(error)) from None

    def group(self, prompt_id: str) -> list[TreeRecord]:
        """The trees of a prompt, by tree_id."""
        return [record for _, record in sorted(self.trees.get(prompt_id, {}).items())]

    def forget(self, prompt_id: str) -> None:
        """Drop a prompt whose trees have gone to the tree file."""
        self._num_stale += len(self.trees.pop(prompt_id, {}))
        if self._num_stale > COMPACT_AT + sum(map(len, self.trees.values())):
            self._file.close()
            self._rewrite()

    def close(self, *, complete: bool) -> None:
        """Close the journal, and remove it where nothing is left to resume."""
        with suppress(OSError):  # what a full disk did not take has been reported by `add`
            self._file.close()
        if complete:
            self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        *lines, _unfinished = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            record = TreeRecord.parse(line, self.path, number)
            self.trees.setdefault(record.prompt_id, {})[record.tree_id] = record

    def _rewrite(self) -> None:
        waiting = [record for group in self.trees.values() for record in group.values()]
        write_whole(self.path, b"".join(record.to_json() + b"\n" for record in waiting))
        self._file = open(self.path, "ab")  # noqa: SIM115 - closed by `close`
        self._num_stale = 0
