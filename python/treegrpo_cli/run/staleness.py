"""A step's forest -> how old what is trained on is, in steps, under the names of `metric_names.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from treegrpo_cli._core import Forest, Scores

AGE_MAX = "staleness/max"


def staleness_metrics(forest: Forest, scores: Scores, learned: NDArray[np.uint32], version: int) -> dict[str, float]:
    """The age of the tokens that weights of this version train on, before their update; 0 where there are none.

    A token's age is `version` less that of the weights which sampled it. Each counts once, however many leaves there
    are below it; those of turns without a scored leaf, or of prompts that are not learned from, do not.
    """
    columns, num_tokens = forest.columns(), forest.gen_tokens().astype(np.int64)
    tree = columns["tree"]
    is_learned = np.isin(columns["prompt"], learned)[tree]
    trained = is_learned & (scores.num_leaves > 0) & (num_tokens > 0)
    age, weight = version - columns["policy_version"].astype(np.int64)[trained], num_tokens[trained]
    return {
        "staleness/mean": float((age * weight).sum() / max(weight.sum(), 1)),
        AGE_MAX: float(age.max(initial=0)),
        "staleness/frac_mixed_trees": _mixed(tree[trained], age),
    }


def _mixed(tree: NDArray[np.generic], age: NDArray[np.int64]) -> float:
    """The share of these turns' trees that are of several ages."""
    trees, place = np.unique(tree, return_inverse=True)
    low, high = np.full(len(trees), np.iinfo(np.int64).max), np.full(len(trees), -1)
    np.minimum.at(low, place, age)
    np.maximum.at(high, place, age)
    return float((high > low).mean()) if len(trees) else 0.0
