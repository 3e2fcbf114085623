"""What scored a tree: the terms of its scoring, and which advantages stand at its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treegrpo_cli._core import describe_estimators
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.trees.format import Fields

if TYPE_CHECKING:
    from treegrpo_cli._core import Scores, ScoreTerm


def scoring_of(scores: Scores) -> Fields:
    """What the tree file says of scores: `estimator` and `options`, or the `terms` of a sum.

    >>> from treegrpo_cli._core import Forest
    >>> scoring_of(Forest().score([{"estimator": "ancestor"}, {"estimator": "ancestor", "weight": 0.5}]))["terms"][1]
    {'estimator': 'ancestor', 'weight': 0.5, 'options': {'weight': 'equal'}}
    """
    [first, *others] = scores.terms
    if not others and first["weight"] == 1:
        return {"estimator": first["estimator"], "options": first["options"]}
    return {"terms": scores.terms}


def terms_of(scoring: Fields) -> list[ScoreTerm]:
    """The terms of a scoring that a tree has."""
    if "terms" in scoring:
        return list(scoring["terms"])
    return [{"estimator": scoring["estimator"], "weight": 1.0, "options": scoring["options"]}]


def label_of(scoring: Fields) -> str:
    """`tree-grpo`, `grpo + 0.5 parent`.

    >>> label_of({"terms": [{"estimator": "grpo", "weight": 1.0}, {"estimator": "parent", "weight": 0.5}]})
    'grpo + 0.5 parent'
    """
    known = terms_of(scoring)
    return " + ".join(
        term["estimator"] if term["weight"] == 1 else f"{term['weight']:g} {term['estimator']}" for term in known
    )


def levels_of(scoring: Fields) -> set[str]:
    """Whether the terms are of leaves, of nodes, or both. Raises UserError for an estimator that is not ours."""
    levels = {known["name"]: known["level"] for known in describe_estimators()}
    found: set[str] = set()
    for term in terms_of(scoring):
        if (name := term["estimator"]) not in levels:
            raise UserError(f"scoring.estimator: unknown {name!r}, {nearest(name, levels)}")
        found |= {"leaf", "node"} if levels[name] == "both" else {levels[name]}
    return found


PARTS = ("leaf_advantage", "node_advantage", "weight")
"""What a node has beside `advantage`: A(l) and a(n) where it is a sum of both, and a weight of its own."""


def parts_of(scores: Scores) -> dict[str, Any]:
    """Those of the columns that these scores have."""
    columns: dict[str, Any] = {}
    if scores.leaf_advantage is not None and scores.node_advantage is not None:
        columns |= {"leaf_advantage": scores.leaf_advantage, "node_advantage": scores.node_advantage}
    return columns if scores.weight is None else columns | {"weight": scores.weight}
