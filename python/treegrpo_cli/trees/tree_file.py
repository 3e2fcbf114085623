"""Tree file <-> trees: reading group by group, and writing that survives a kill.

data/lines.py    path -> lines
tree_record.py   line <-> TreeRecord
here             trees of one prompt -> group, groups -> file
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import zstandard

from treegrpo_cli.data.lines import read_lines
from treegrpo_cli.data.lock import check_same_file
from treegrpo_cli.data.syncer import Syncer
from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.trees.collection import TreeReader
from treegrpo_cli.trees.tree_record import TreeRecord
from treegrpo_cli.types import Limits

__all__ = ["TreeRecord", "TreeWriter", "read_groups", "read_trees", "write_groups"]


def read_trees(path: str | Path, limits: Limits | None = None) -> TreeReader:
    """Yield the trees of a tree file in its order, one in memory at a time; `Trees(read_trees(path))` is a list of all.

    `path` ends in `.zst` where the file is compressed; `-` is standard input. Raises UserError, naming
    file and line, at the first line that is no valid tree, at a prompt_id that returns after another
    one, at a (prompt_id, tree_id) that occurs twice, and beyond a limit; the trees in front of it have been given.

    >>> from tempfile import NamedTemporaryFile
    >>> nodes = '{"id": 0, "parent": null, "reward": null}, {"id": 1, "parent": 0, "reward": 1}'
    >>> with NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     line = f'{{"schema": "treegrpo.tree/1", "prompt_id": "q", "tree_id": 0, "nodes": [{nodes}]}}'
    ...     print(line, file=file, flush=True)
    ...     [tree] = read_trees(file.name)
    >>> tree.prompt_id, tree.nodes[1]["reward"]
    ('q', 1)
    """
    return TreeReader(_read(path, limits), path)


def _read(path: str | Path, limits: Limits | None) -> Iterator[TreeRecord]:
    prompt_id, seen, tree_ids = None, set[str](), set[int]()
    for number, line in read_lines(path, limits):
        record = TreeRecord.parse(line, path, number, limits)
        if record.prompt_id != prompt_id:
            prompt_id, tree_ids = record.prompt_id, set()
            if prompt_id in seen:
                raise record.error(f"prompt_id {prompt_id!r} returns after another: a prompt's trees stand together")
            seen.add(prompt_id)
        if record.tree_id in tree_ids:
            raise record.error(f"a second tree {record.tree_id} of prompt_id {prompt_id!r}")
        tree_ids.add(record.tree_id)
        yield record
    if prompt_id is None:
        raise FileError(path, "holds no trees")


def read_groups(path: str | Path, limits: Limits | None = None) -> Iterator[list[TreeRecord]]:
    """Yield the trees of each prompt together; never holds more than one group and the tree behind it.

    Raises as `read_trees` does, behind the last group, which then may lack trees.
    """
    group: list[TreeRecord] = []
    try:
        for record in read_trees(path, limits):
            if group and group[0].prompt_id != record.prompt_id:
                yield group
                group = []
            group.append(record)
    except UserError:
        if group:
            yield group
        raise
    yield group


class TreeWriter:
    """Writes groups to `path`: a kill leaves whole groups of all that `write_group` returned for.

    Where `path` ends in `.zst` every group is a frame with a checksum. `append` goes on behind what is there. The disk
    is synced by a thread, and at the end. Raises FileError where the file cannot be written, or is deleted or
    replaced meanwhile; on a full disk what was written before stays whole.
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        self.path = Path(path)
        is_packed = self.path.suffix == ".zst"
        self._pack = zstandard.ZstdCompressor(write_checksum=True).compress if is_packed else bytes
        try:
            self._file = open(self.path, "ab" if append else "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise FileError(self.path, said(error)) from None
        self._syncer = Syncer(self._file.fileno())

    def write_group(self, group: Iterable[TreeRecord]) -> None:
        """Append a prompt's trees."""
        check_same_file(self._file.fileno(), self.path)
        data = self._pack(b"".join(record.to_json() + b"\n" for record in group))
        start = self._file.tell()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._syncer.changed()
        except OSError as error:
            with suppress(OSError):  # what cannot be cut off stays as a half line, which readers name
                self._file.truncate(start)
            raise FileError(self.path, said(error)) from None

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        try:
            self._syncer.sync()
        except OSError as error:
            raise FileError(self.path, said(error)) from None

    def close(self) -> None:
        """Bring all to the disk and close the file."""
        try:
            check_same_file(self._file.fileno(), self.path)
        finally:
            self._file.close()
            try:
                self._syncer.close()
            except OSError as error:
                raise FileError(self.path, said(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(FileError) if kind else nullcontext():  # the first error is the one to tell
            self.close()


def write_groups(path: str | Path, groups: Iterable[Iterable[TreeRecord]]) -> None:
    """Write a file of groups: each is packed and written in a thread while the next is made.

    Two groups are held at once. Raises as `TreeWriter` does, and what `groups` raises; whole groups are in the file.
    """
    with TreeWriter(path) as writer, ThreadPoolExecutor(1, "treegrpo-tree-file") as beside:
        last: Future[None] | None = None
        for group in groups:
            made = list(group)
            if last is not None:
                last.result()
            last = beside.submit(writer.write_group, made)
        if last is not None:
            last.result()
