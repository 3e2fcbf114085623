"""Tree files -> the trees that were asked for, scored, group by group."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.trees.scoring import keep_or_score, score_group
from treegrpo_cli.trees.tree_file import read_groups
from treegrpo_cli.trees.tree_record import TreeRecord

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm

Chosen: TypeAlias = Iterator[tuple[Sequence[TreeRecord], set[int]]]
"""Each prompt's trees, and the tree_ids of those that are wanted."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which trees are shown: those of a prompt, those of a number, or all."""

    prompt_id: str | None
    tree_id: int | None

    def __str__(self) -> str:
        said = [f"prompt_id {self.prompt_id!r}"] if self.prompt_id is not None else []
        return " and ".join(said + ([f"tree_id {self.tree_id}"] if self.tree_id is not None else []))


def choose(files: Sequence[str], terms: Sequence[ScoreTerm] | None, wanted: Wanted) -> Chosen:
    """Yield each prompt's trees, scored unless `terms` is None: by them, or where they are none as the file has it.

    Raises UserError for anything wrong with files or terms, and where no tree is wanted.
    """
    found = False
    for file in files:
        for group in read_groups(file):
            if wanted.prompt_id not in (None, group[0].prompt_id):
                continue
            ids = {record.tree_id for record in group if wanted.tree_id in (None, record.tree_id)}
            if ids:
                found = True
                yield group if terms is None else _scored(group, terms), ids
    if not found:
        where = files[0] if len(files) == 1 else f"{files[0]} … {files[-1]}"
        raise FileError(where, f"no tree with {wanted}")


def _scored(group: Sequence[TreeRecord], terms: Sequence[ScoreTerm]) -> list[TreeRecord]:
    return score_group(group, terms, in_place=True) if terms else keep_or_score(group, in_place=True)


def wanted_trees(chosen: Chosen) -> Iterator[Sequence[TreeRecord]]:
    """Of each prompt the trees that are wanted."""
    return ([record for record in group if record.tree_id in ids] for group, ids in chosen)


def first_trees(groups: Iterator[Sequence[TreeRecord]], limit: int | None) -> Iterator[Sequence[TreeRecord]]:
    """The first `limit` trees, in their groups; what is behind them is not read."""
    num_left = sys.maxsize if limit is None else limit
    while num_left > 0 and (group := next(groups, None)):
        yield group[:num_left]
        num_left -= len(group)


def the_tree(chosen: Chosen, option: str) -> tuple[Sequence[TreeRecord], int]:
    """The group and the place in it of the one tree that was chosen. Raises UserError, naming `option`, for several."""
    group, ids = next(chosen)
    if len(ids) > 1 or next(chosen, None) is not None:
        raise UserError(f"{option} needs one tree: choose it by --prompt-id, --tree-id and --step")
    [place] = [place for place, record in enumerate(group) if record.tree_id in ids]
    return group, place
