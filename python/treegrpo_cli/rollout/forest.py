"""Trees that grew apart -> one Forest of the core, node by node in the order of the tree file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from treegrpo_cli._core import CoreError, Forest
from treegrpo_cli.errors import UserError
from treegrpo_cli.trees.own_estimator import is_own
from treegrpo_cli.trees.sums import score_forest

if TYPE_CHECKING:
    from treegrpo_cli._core import Scores
    from treegrpo_cli.config import AdvantageConfig
    from treegrpo_cli.rollout.tree import Tree


def join(trees: Sequence[Tree]) -> Forest:
    """Join grown trees, rewards included; who was finished first leaves no trace in the columns."""
    orders = [np.array(tree.in_key_order(), dtype=np.uint32) for tree in trees]
    return Forest.concat([tree.forest for tree in trees], orders)


def score(forest: Forest, trees: Sequence[Tree], advantage: AdvantageConfig) -> Scores:
    """Score a forest that `join` made of `trees`. Raises UserError where the estimator cannot take a reward."""
    setting = "terms" if advantage.terms else "estimator"
    try:
        return score_forest(forest, advantage.score_terms, key=f"advantage.{setting}", timeout_s=advantage.timeout_s)
    except CoreError as error:
        where = "" if error.tree is None else f"prompt {trees[error.tree].prompt.prompt_id}: "
        named = "" if advantage.terms or is_own(advantage.estimator) else f" {advantage.estimator}"
        raise UserError(f"advantage.{setting}{named}: {where}{error.reason}") from None


def check_terms(advantage: AdvantageConfig) -> None:
    """Raise UserError where an estimator of the user's own cannot be loaded, has other options, or fits in no sum."""
    score(Forest(), (), advantage)
