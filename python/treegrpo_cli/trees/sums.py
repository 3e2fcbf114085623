"""Forest + terms -> scores: the core's estimators, those of the user's own, and sums of both."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli._core import CoreError, Forest, describe_estimators
from treegrpo_cli.errors import UserError
from treegrpo_cli.trees.own_estimator import TIMEOUT_S, OwnEstimator, is_own, load_own_estimator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli._core import Scores, ScoreTerm

    Column = NDArray[np.float64] | None


def score_forest(
    forest: Forest, terms: Sequence[ScoreTerm], *, key: str = "estimator", timeout_s: float = TIMEOUT_S
) -> Scores:
    """Score a whole forest by the sum of terms; a group is the trees of one prompt.

    Where a term is of the user's own, values are leaf-means. Raises CoreError as the core does, and UserError, which
    names `key`, for what is wrong with a function of the user's.
    """
    own = [(_weight(term, key), _loaded(term, key)) for term in terms if is_own(term["estimator"])]
    if not own:
        return forest.score(terms)
    ours = [term for term in terms if not is_own(term["estimator"])]
    weighing = {known["name"] for known in describe_estimators() if known["weighs"]}
    for term in ours:
        if term["estimator"] in weighing:
            raise UserError(f"{key}: {term['estimator']} weighs turns itself: it stands in no sum")
    parts = [(1.0, forest.score(ours))] if ours else []
    parts += [(weight, estimator.score(forest, timeout_s)) for weight, estimator in own]
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    leaf = _sum((weight, scores.leaf_advantage) for weight, scores in parts)
    node = _sum((weight, scores.node_advantage) for weight, scores in parts)
    label = " + ".join(scores.estimator if w == 1 else f"{w:g} {scores.estimator}" for w, scores in parts)
    if leaf is not None:
        return forest.given_scores(leaf, leaf_level=True, beside=node, estimator=label)
    assert node is not None  # a term has a level
    return forest.given_scores(node, leaf_level=False, estimator=label)


def resolved_terms(terms: Sequence[ScoreTerm], key: str = "estimator") -> list[dict[str, Any]]:
    """What the tree file says of terms: weights, and all options; of the user's own the level too.

    Raises UserError for a term that cannot be.
    """
    try:
        return [_resolved(term, key) for term in terms]
    except CoreError as error:
        raise UserError(f"{key}: {error.reason}") from None


def _resolved(term: ScoreTerm, key: str) -> dict[str, Any]:
    if is_own(term["estimator"]):
        return _loaded(term, key).term(_weight(term, key))
    return dict(Forest().score([term]).terms[0])


def _loaded(term: ScoreTerm, key: str) -> OwnEstimator:
    return load_own_estimator(term["estimator"], term.get("options", {}), key)


def _weight(term: ScoreTerm, key: str) -> float:
    weight = term.get("weight", 1.0)
    if not (isfinite(weight) and weight >= 0):
        raise UserError(f"{key}: option weight: got {weight}, expected a finite number, 0 or more")
    return weight


def _sum(columns: Any) -> Column:
    total: Column = None
    for weight, column in columns:
        if column is not None:
            total = weight * column if total is None else total + weight * column
    return total
