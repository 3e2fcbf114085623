"""A scored forest -> plain numpy columns -> the same forest in another process.

Ray puts columns into its object store once; every rank of a machine reads them there. What is laid out from a forest
that was built again is laid out from the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli._core import Forest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli._core import Scores

FOLLOWS = ("root", "depth")
"""Columns that follow from the others."""


@dataclass(frozen=True, slots=True)
class StepColumns:
    """All that an update reads: the forest's columns, `given_scores` as keywords, and the prompts to train on."""

    forest: dict[str, Any]
    scores: dict[str, Any]
    prompts: NDArray[np.uint32] | None

    @classmethod
    def of(cls, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None) -> StepColumns:
        """Take the columns as they are; no row can be added to the forest afterwards."""
        columns = {name: column for name, column in forest.columns().items() if name not in FOLLOWS}
        known = {
            "round": forest.knows_rounds,
            "logprobs": forest.knows_logprobs,
            "tool_call": forest.knows_tool_calls,
        }
        kept = {name: column for name, column in columns.items() if known.get(name, True)}
        return cls(kept, _given(scores), prompts)

    @property
    def num_bytes(self) -> int:
        """Of all columns."""
        held = [*self.forest.values(), *self.scores.values()]
        return sum(column.nbytes for column in held if isinstance(column, np.ndarray))

    def build(self) -> tuple[Forest, Scores]:
        """Build the forest and its scores again."""
        forest = Forest.from_columns(**self.forest)
        return forest, forest.given_scores(**self.scores)


def _given(scores: Scores) -> dict[str, Any]:
    """The scores as `Forest.given_scores` takes them."""
    leaf, node = scores.leaf_advantage, scores.node_advantage
    unmasked = None
    if scores.unmasked_advantage is not None:
        unmasked = (scores.unmasked_leaf_advantage, scores.unmasked_node_advantage)
    return {
        "advantage": node if leaf is None else leaf,
        "leaf_level": leaf is not None,
        "estimator": scores.estimator,
        "beside": None if leaf is None else node,
        "weight": scores.weight,
        "unmasked": unmasked,
    }
