"""Scored prompts -> pages of a bounded size: a file or a run of any length in the memory of one page and the index.

A file's prompts become pages in its order. The files of a run hold a dataset row once a step, and its page is to show
them together: prompts are first written to one temporary file, and read back row by row (`Spill`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.trees.tree_record import TreeRecord

MAX_NODES, MAX_BYTES = 20_000, 64 * 2**20
"""Of one page for a whole file: nodes, and bytes of their lines."""
BATCH_NODES, BATCH_BYTES = 4_000, 8 * 2**20
"""Of a page in a folder; one prompt of one step is never divided, however large it is."""


@dataclass(frozen=True, slots=True)
class Part:
    """The scored trees of one prompt in one step, and the tree_ids of those that are shown."""

    records: Sequence[TreeRecord]
    ids: frozenset[int]
    num_nodes: int
    num_bytes: int

    @property
    def share(self) -> float:
        """Of a page in a folder, what it fills."""
        return _share(self.num_nodes, self.num_bytes)


def parts_of(chosen: Iterable[tuple[Sequence[TreeRecord], set[int]]], limit: int | None = None) -> Iterator[Part]:
    """The prompts that were asked for, of which the first `limit` trees are shown."""
    left = limit
    for records, ids in chosen:
        shown = [record for record in records if record.tree_id in ids][:left]
        num_bytes = sum(len(record.to_json()) for record in shown)
        num_nodes = sum(len(record.nodes) for record in shown)
        yield Part(records, frozenset(record.tree_id for record in shown), num_nodes, num_bytes)
        left = None if left is None else left - len(shown)
        if left == 0:
            return


def check_size(parts: Iterable[Part], path: Path) -> Iterator[Part]:
    """Pass parts on. Raises UserError at the first that is too much for one page."""
    num_nodes = num_bytes = 0
    for part in parts:
        num_nodes += part.num_nodes
        num_bytes += part.num_bytes
        if num_nodes > MAX_NODES or num_bytes > MAX_BYTES:
            raise UserError(
                f"--html {path}: one page holds {MAX_NODES:,} nodes and {MAX_BYTES >> 20} MiB of trees, and there are "
                f"more; --html {path.with_suffix('')} writes a folder of pages, --prompt-id, --step and --limit choose"
            )
        yield part


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    sizes: tuple[int, ...]
    sources: tuple[tuple[str | None, int | None], ...]
    ids: frozenset[int]
    num_nodes: int
    num_bytes: int


class Spill:
    """Parts in a temporary file, to be read back by the dataset row that they are of; in memory are their places."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._places: dict[bytes, list[_Place]] = {}

    def add(self, part: Part) -> None:
        """Keep a part."""
        lines = [record.to_json() for record in part.records]
        sources = tuple((str(record.path) if record.path else None, record.line) for record in part.records)
        place = _Place(self._file.tell(), tuple(map(len, lines)), sources, part.ids, part.num_nodes, part.num_bytes)
        self._file.writelines(lines)
        self._places.setdefault(_row_of(part.records[0]), []).append(place)

    def rows(self) -> Iterator[tuple[float, Iterator[Part]]]:
        """For every row, in the order of its first part: what share of a page it fills, and its parts."""
        for places in self._places.values():
            yield sum(_share(place.num_nodes, place.num_bytes) for place in places), map(self._read, places)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def _read(self, place: _Place) -> Part:
        self._file.seek(place.start)
        records = [
            TreeRecord.parse(self._file.read(size), path, line)
            for size, (path, line) in zip(place.sizes, place.sources, strict=True)
        ]
        return Part(records, place.ids, place.num_nodes, place.num_bytes)


def pages(rows: Iterable[tuple[float, Iterator[Part]]]) -> Iterator[tuple[list[Part], bool]]:
    """Fill pages with rows, and say of each whether it is the last; a row that fits on a page is on one page."""
    page: list[Part] = []
    filled = 0.0
    for share, parts in rows:
        is_new = True
        for part in parts:
            if page and filled + (share if is_new else part.share) > 1.0:
                yield page, False
                page, filled = [], 0.0
            page.append(part)
            filled += part.share
            is_new = False
    yield page, True


def rows_of(parts: Iterable[Part], folder: Path | None) -> Iterator[tuple[float, Iterator[Part]]]:
    """Each part a row of its own; or, with a folder for a temporary file, all parts of a dataset row together."""
    if folder is None:
        for part in parts:
            yield part.share, iter([part])
        return
    try:
        spill = Spill(folder)
        try:
            for part in parts:
                spill.add(part)
            yield from spill.rows()
        finally:
            spill.close()
    except OSError as error:
        raise FileError(folder, f"no temporary file can be written: {said(error)}") from None


def _share(num_nodes: int, num_bytes: int) -> float:
    return max(num_nodes / BATCH_NODES, num_bytes / BATCH_BYTES)


def _row_of(record: TreeRecord) -> bytes:
    """What tells dataset rows apart, as the page does: their content; without one, the prompt's own id."""
    content = ["task", record.task] if record.task else ["prompt", record.prompt_id]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()
