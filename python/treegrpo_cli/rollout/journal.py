"""Finished trees <-> the journal beside a tree file, where they wait for the last tree of their prompt.

Each tree is appended when it ends, as one line; a kill loses no more than trees in progress, and at
most half a line, which is dropped on reading. The disk is synced by a thread. Lines of groups that have gone to the
tree file are stale; the journal is rewritten when they outnumber the rest, and removed at the end.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from treegrpo_cli.data.lock import check_same_file
from treegrpo_cli.data.salvage import find_lines, move_aside
from treegrpo_cli.data.syncer import Syncer
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.trees.tree_file import TreeRecord
from treegrpo_cli.types import Limits

COMPACT_AT = 256


class Journal:
    """Trees whose prompt is not complete yet, by prompt_id and tree_id, in memory and, once started, on disk.

    With `resume`, `trees` are those that an earlier run left, and nothing is written before `start`.
    """

    def __init__(self, tree_file: Path, *, resume: bool, limits: Limits | None = None) -> None:
        self.path = self.path_of(tree_file)
        self.trees: dict[str, dict[int, TreeRecord]] = {}
        self.moved_aside: Path | None = None
        """Where `start` put lines that could not be read."""
        self._damage: list[tuple[int, int]] = []
        self._num_stale = 0
        self._is_open = False
        if resume and self.path.exists():
            self._read(limits or Limits())

    @staticmethod
    def path_of(tree_file: Path) -> Path:
        """Where the journal of a tree file is."""
        return tree_file.with_name(f"{tree_file.name}.journal")

    def start(self) -> None:
        """Write what waits to the disk, whole, and what could not be read aside. Raises FileError."""
        self.moved_aside = move_aside(self.path, self._damage)
        self._rewrite()

    def add(self, record: TreeRecord) -> None:
        """Append a finished tree; the process may be killed when this returns. Raises FileError, of a full disk say."""
        self.trees.setdefault(record.prompt_id, {})[record.tree_id] = record
        try:
            self._file.write(record.to_json() + b"\n")
            self._file.flush()
            self._syncer.changed()
        except OSError as error:
            raise FileError(self.path, said(error)) from None
        check_same_file(self._file.fileno(), self.path)

    def group(self, prompt_id: str) -> list[TreeRecord]:
        """The trees of a prompt, by tree_id."""
        return [record for _, record in sorted(self.trees.get(prompt_id, {}).items())]

    def forget(self, prompt_id: str) -> None:
        """Drop a prompt whose trees have gone to the tree file."""
        self._num_stale += len(self.trees.pop(prompt_id, {}))

    @property
    def is_stale(self) -> bool:
        """Whether most of the file is of no use any more, so that it should be compacted."""
        return self._num_stale > COMPACT_AT + sum(map(len, self.trees.values()))

    def compact(self) -> None:
        """Drop the stale lines; what they hold must be on the disk elsewhere."""
        self._close_file()
        self._rewrite()

    def close(self, *, complete: bool) -> None:
        """Close the journal, and remove it where nothing is left to resume."""
        if not self._is_open:
            return
        with suppress(OSError):  # what a full disk did not take has been reported by `add`
            self._close_file()
        if complete:
            self.path.unlink(missing_ok=True)

    def _close_file(self) -> None:
        self._is_open = False
        try:
            self._file.close()
        finally:
            self._syncer.close()

    def _read(self, limits: Limits) -> None:
        for found in find_lines(self.path, limits):
            try:
                record = None if found.line is None else TreeRecord.parse(found.line, self.path, limits=limits)
            except UserError:
                record = None
            if record is not None:
                self.trees.setdefault(record.prompt_id, {})[record.tree_id] = record
            elif found.is_clean:  # a line without its end is the tree that was in progress
                self._damage.append((found.start, found.end))

    def _rewrite(self) -> None:
        waiting = [record for group in self.trees.values() for record in group.values()]
        try:
            write_whole(self.path, b"".join(record.to_json() + b"\n" for record in waiting))
            self._file = open(self.path, "ab")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise FileError(self.path, said(error)) from None
        self._syncer, self._is_open, self._num_stale = Syncer(self._file.fileno()), True, 0
