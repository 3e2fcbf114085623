"""The core's estimators -> what there is to know of them, in Python and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from treegrpo_cli._core import describe_estimators
from treegrpo_cli.errors import UserError, nearest

LEVELS = {
    "leaf": "of leaves, A(l): all turns of a path take their leaf's",
    "node": "of turns, A(n): each has its own",
    "both": "of leaves and of turns, A(l) + a(n)",
}
LETTERS = "R a reward, V a value, l a leaf, n a turn, N the normaliser: (x - center) / scale"


class Option(TypedDict):
    """An option of an estimator."""

    default: str | float | int | bool
    legal: str
    """What it may be, in words."""
    beside: str | None
    """`option=value` beside which alone it counts."""


class Estimator(TypedDict):
    """How rewards become advantages."""

    name: str
    level: str
    """`leaf`: every turn of a path takes its leaf's advantage; `node`: each has its own; `both`: the sum of the two."""
    summary: str
    formula: str
    """N is the normaliser (`center`, `scale`), R a reward, V a value; l a leaf, n a node."""
    weighs: bool
    """Whether it gives each turn a weight of its own, in place of `loss.prefix_weight`; it stands in no sum."""
    reads_tokens: bool
    """Whether token ids matter to it, not the shape of trees and their rewards alone."""
    options: dict[str, Option]


def estimators() -> dict[str, Estimator]:
    """Return every estimator by its name, with its options, their defaults and what they may be.

    >>> parent = estimators()["parent"]
    >>> parent["level"], parent["options"]["scale"]["legal"]
    ('node', 'none, std')
    """
    return {known["name"]: Estimator(**known) for known in describe_estimators()}


def lines_of(name: str | None = None) -> Iterator[str]:
    """All estimators in short, or one with its options. Raises UserError for a name that is none."""
    known = estimators()
    if name is None:
        yield from _overview(known)
    elif name in known:
        yield from _whole(known[name])
    else:
        raise UserError(f"unknown estimator {name!r}; {nearest(name, known)}")


def _overview(known: dict[str, Estimator]) -> Iterator[str]:
    width = max(map(len, known))
    for estimator in known.values():
        yield f"{estimator['name']:<{width}}  {estimator['summary']}"
        yield f"{'':<{width}}  {estimator['formula']}"
    yield ""
    yield LETTERS
    yield "treegrpo estimators NAME lists the options of one"


def _whole(estimator: Estimator) -> Iterator[str]:
    yield f"{estimator['name']}: {estimator['summary']}"
    yield estimator["formula"]
    yield LETTERS
    yield f"advantages are {LEVELS[estimator['level']]}"
    yield ""
    options = {f"{name}={option['default']}": option for name, option in estimator["options"].items()}
    width = max(map(len, options))
    for default, option in options.items():
        beside = f"; beside {option['beside']} alone" if option["beside"] else ""
        yield f"  {default:<{width}}  {option['legal']}{beside}"
