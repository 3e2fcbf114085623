"""One prompt's scored trees -> what a page shows of them: chosen trees, and columns of every estimator that can score.

The first scoring is the trees' own. An estimator that refuses a prompt is not offered, and its reason is said.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.trees.estimators import estimators
from treegrpo_cli.trees.forest import numbers_of
from treegrpo_cli.trees.format import Fields
from treegrpo_cli.trees.scoring import score_group
from treegrpo_cli.trees.sources import step_of
from treegrpo_cli.trees.terms import label_of
from treegrpo_cli.trees.tree_record import TreeRecord

Column = NDArray[np.float64]

SCORE_COLUMNS = ("value", "advantage", "unmasked_advantage", "weight")


@dataclass(frozen=True, slots=True)
class Scored:
    """Columns of one scoring over a group's nodes, NaN where there is none; `label` is how people name it."""

    label: str
    scoring: Fields
    columns: dict[str, Column]


@dataclass(frozen=True, slots=True)
class Group:
    """The chosen trees of one prompt.

    `shown` is their own scoring, `others` those by estimators with default options, by name; `refused` has the reason
    of every estimator that cannot score the prompt.
    """

    records: Sequence[TreeRecord]
    shown: Scored
    others: dict[str, Scored]
    refused: dict[str, str]

    @property
    def num_nodes(self) -> int:
        """Of all its trees."""
        return sum(len(record.nodes) for record in self.records)

    @property
    def step(self) -> int | None:
        """The step of the run that grew the trees, where the file's name says it."""
        path = self.records[0].path
        return None if path is None else step_of(Path(path))


def prepared(group: Sequence[TreeRecord], chosen: Set[int]) -> Group:
    """A scored prompt, of which the trees with the `chosen` ids are shown; all of them count in every scoring."""
    others, refused = {}, {}
    for name in estimators():
        try:
            others[name] = _columns_of(_scored_by(name, group), chosen)
        except UserError as error:
            refused[name] = error.reason if isinstance(error, FileError) else str(error)
    records = [record for record in group if record.tree_id in chosen]
    return Group(records, _columns_of(group, chosen), others, refused)


def _scored_by(name: str, group: Sequence[TreeRecord]) -> list[TreeRecord]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trees' own scoring the reader was warned before
        return score_group(group, name)


def _columns_of(group: Sequence[TreeRecord], chosen: Set[int]) -> Scored:
    nodes = [node for record in group if record.tree_id in chosen for node in record.nodes]
    names = set().union(*nodes)
    scoring = group[0].scoring or {}
    columns = {name: numbers_of(nodes, name) for name in SCORE_COLUMNS if name in names}
    return Scored(label_of(scoring), scoring, columns)
