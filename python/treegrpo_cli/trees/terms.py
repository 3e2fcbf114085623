"""What scored a tree: the terms of its scoring, and which advantages stand at its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treegrpo_cli._core import describe_estimators
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.trees.format import Fields

if TYPE_CHECKING:
    from treegrpo_cli._core import Scores


def scoring_of(terms: Sequence[Mapping[str, Any]]) -> Fields:
    """What the tree file says of resolved terms: `estimator` and `options`, or the `terms` of a sum.

    >>> scoring_of([{"estimator": "ancestor", "weight": 1.0, "options": {"weight": "equal"}}])
    {'estimator': 'ancestor', 'options': {'weight': 'equal'}}
    """
    [first, *others] = terms
    if not others and first["weight"] == 1 and "mask" not in first:
        return {name: value for name, value in first.items() if name != "weight"}
    return {"terms": list(terms)}


def terms_of(scoring: Fields) -> list[Any]:
    """The terms of a scoring that a tree has."""
    if "terms" in scoring:
        return list(scoring["terms"])
    return [{"weight": 1.0, **scoring}]


def label_of(scoring: Fields) -> str:
    """`tree-grpo`, `grpo + 0.5 parent`, `grpo + parent on tool-calls`.

    >>> label_of({"terms": [{"estimator": "grpo", "weight": 1.0}, {"estimator": "parent", "weight": 0.5}]})
    'grpo + 0.5 parent'
    """
    return " + ".join(map(label_of_term, terms_of(scoring)))


def label_of_term(term: Mapping[str, Any]) -> str:
    """`0.5 parent on tool-calls`: how much it counts, its estimator, and for which tokens."""
    weight = "" if term["weight"] == 1 else f"{term['weight']:g} "
    return f"{weight}{term['estimator']}" + (f" on {term['mask']}" if "mask" in term else "")


def is_masked(scoring: Fields) -> bool:
    """Whether a term counts for some tokens alone."""
    return any("mask" in term for term in terms_of(scoring))


def levels_of(terms: Sequence[Mapping[str, Any]]) -> set[str]:
    """Whether terms are of leaves, of nodes, or both. Raises UserError for an estimator that is not ours."""
    levels = {known["name"]: known["level"] for known in describe_estimators()}
    found: set[str] = set()
    for term in terms:
        if (name := term["estimator"]) not in levels and term.get("level") in ("leaf", "node"):
            levels[name] = term["level"]  # of the user's own
        if name not in levels:
            raise UserError(f"scoring.estimator: unknown {name!r}, {nearest(name, levels)}")
        found |= {"leaf", "node"} if levels[name] == "both" else {levels[name]}
    return found


UNMASKED = "unmasked_"
PARTS = (
    *("leaf_advantage", "node_advantage", "weight"),
    *("unmasked_advantage", "unmasked_leaf_advantage", "unmasked_node_advantage"),
)
"""What a node has beside `advantage`: A(l) and a(n) where it is a sum of both, and a weight of its own.

`advantage` is what tokens of tool calls get; beside masked terms `unmasked_advantage` is what the other tokens get."""


def parts_of(scores: Scores) -> dict[str, Any]:
    """Those of the columns that these scores have."""
    columns: dict[str, Any] = {}
    if scores.leaf_advantage is not None and scores.node_advantage is not None:
        columns |= {"leaf_advantage": scores.leaf_advantage, "node_advantage": scores.node_advantage}
    if scores.unmasked_advantage is not None:
        columns["unmasked_advantage"] = scores.unmasked_advantage
    if scores.unmasked_leaf_advantage is not None and scores.unmasked_node_advantage is not None:
        columns["unmasked_leaf_advantage"] = scores.unmasked_leaf_advantage
        columns["unmasked_node_advantage"] = scores.unmasked_node_advantage
    return columns if scores.weight is None else columns | {"weight": scores.weight}
