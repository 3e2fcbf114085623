"""Forest + terms -> scores: the core's estimators, those of the user's own, and sums of both."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

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
    own = [(_weight(term, key), _mask(term), _loaded(term, key)) for term in terms if is_own(term["estimator"])]
    if not own:
        return forest.score(terms)
    check_weighing(terms, key)
    ours = [term for term in terms if not is_own(term["estimator"])]
    parts = [_Part(1.0, {}, forest.score(ours))] if ours else []
    parts += [_Part(weight, mask, estimator.score(forest, timeout_s)) for weight, mask, estimator in own]
    if len(parts) == 1 and parts[0].weight == 1 and not parts[0].mask:
        return parts[0].scores
    leaf = _sum((part.weight, part.scores.leaf_advantage) for part in parts)
    node = _sum((part.weight, part.scores.node_advantage) for part in parts)
    unmasked = None
    if any("mask" in term for term in terms):
        leaf_outside, node_outside = (
            _sum((part.weight, part.unmasked(level)) for part in parts) for level in ("leaf", "node")
        )
        unmasked = (leaf_outside, node_outside)
    label = " + ".join(part.label for part in parts)
    if leaf is not None:
        return forest.given_scores(leaf, leaf_level=True, beside=node, estimator=label, unmasked=unmasked)
    assert node is not None  # a term has a level
    return forest.given_scores(node, leaf_level=False, estimator=label, unmasked=unmasked)


def check_weighing(terms: Sequence[ScoreTerm], key: str = "estimator") -> None:
    """Raise UserError, naming `key`, for a term of a sum that gives turns weights of its own."""
    weighing = {known["name"] for known in describe_estimators() if known["weighs"]}
    for term in terms:
        if len(terms) > 1 and term["estimator"] in weighing:
            raise UserError(f"{key}: {term['estimator']} weighs turns itself: it stands in no sum")


class _Part(NamedTuple):
    """Scores in a sum: those of the core's terms together, whose masks are their own, or those of a function."""

    weight: float
    mask: dict[str, str]
    scores: Scores

    @property
    def label(self) -> str:
        weight = "" if self.weight == 1 else f"{self.weight:g} "
        return f"{weight}{self.scores.estimator}" + "".join(f" on {mask}" for mask in self.mask.values())

    def unmasked(self, level: str) -> Column:
        """The advantages of a level that tokens which are part of no tool call get."""
        if self.mask:
            return None
        column: Column = getattr(self.scores, f"{level}_advantage")
        masked: Column = getattr(self.scores, f"unmasked_{level}_advantage")
        return column if self.scores.unmasked_advantage is None else masked


def _mask(term: ScoreTerm) -> dict[str, str]:
    """The term's mask, where it has one. Raises CoreError for one that is none."""
    if "mask" not in term:
        return {}
    Forest().score([{"estimator": "grpo", "mask": term["mask"]}])
    return {"mask": term["mask"]}


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
        return {**_loaded(term, key).term(_weight(term, key)), **_mask(term)}
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
