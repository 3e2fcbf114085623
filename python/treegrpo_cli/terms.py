"""Terms of a sum of estimators: as settings and people write them -> as the core takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm

OWN_KEYS = ("estimator", "weight", "options")


def read_term(fields: Mapping[str, Any]) -> ScoreTerm:
    """Take a table of `estimator`, `weight` (1) and the estimator's options.

    Options stand beside the name or, where one is called as a key of the term is, in a table `options`. Raises
    ValueError for a table that is none of this; names and values of options are the core's to check.

    >>> read_term({"estimator": "ancestor", "weight": 0.5, "options": {"weight": "leaves"}})
    {'estimator': 'ancestor', 'weight': 0.5, 'options': {'weight': 'leaves'}}
    """
    name, weight, options = fields.get("estimator"), fields.get("weight", 1.0), fields.get("options", {})
    if not isinstance(name, str):
        raise ValueError("a term has no estimator: expected its name")
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        raise ValueError(
            f"weight of {name}: got {weight!r}, expected a number, 0 or more; an option of this name stands in a table "
            "'options'"
        )
    if not isinstance(options, Mapping):
        raise ValueError(f"options of {name}: expected a table")
    beside = {key: value for key, value in fields.items() if key not in OWN_KEYS}
    return {"estimator": name, "weight": float(weight), "options": {**options, **beside}}


def parse_term(text: str) -> ScoreTerm:
    """Read a term as a command line has it: `[weight*]name[,option=value ...]`. Raises UserError.

    >>> parse_term("0.5*parent,roots=tree")
    {'estimator': 'parent', 'weight': 0.5, 'options': {'roots': 'tree'}}
    """
    head, *pairs = text.split(",")
    weight, star, name = head.rpartition("*")
    try:
        factor = float(weight) if star else 1.0
    except ValueError:
        raise UserError(f"--estimator {text!r}: expected [weight*]name[,option=value ...]") from None
    options = dict(pair.partition("=")[::2] for pair in pairs)
    if not name or not all("=" in pair and not pair.startswith("=") for pair in pairs):
        raise UserError(f"--estimator {text!r}: expected [weight*]name[,option=value ...]")
    return {"estimator": name.strip(), "weight": factor, "options": dict(options)}
