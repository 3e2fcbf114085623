"""Terms of a sum of estimators: as settings and people write them -> as the core takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm

OWN_KEYS = ("estimator", "weight", "mask", "options")


def read_term(fields: Mapping[str, Any]) -> ScoreTerm:
    """Take a table of `estimator`, `weight` (1), `mask` (none) and the estimator's options.

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
            f"weight of {name}: got {weight!r}, expected a number above 0; an option of this name stands in a table "
            "'options'"
        )
    if weight == 0:
        raise ValueError(f"weight of {name} is 0, so it adds nothing; leave the term out")
    mask = fields.get("mask")
    if not isinstance(mask, str | None):
        raise ValueError(f"mask of {name}: got {mask!r}, expected the name of one")
    if not isinstance(options, Mapping):
        raise ValueError(f"options of {name}: expected a table")
    beside = {key: value for key, value in fields.items() if key not in OWN_KEYS}
    return _term(name, float(weight), mask, {**options, **beside})


def parse_term(text: str) -> ScoreTerm:
    """Read a term as a command line has it: `[weight*]name[,option=value ...]`, its mask among the options.

    Raises UserError.

    >>> parse_term("0.5*parent,roots=tree")
    {'estimator': 'parent', 'weight': 0.5, 'options': {'roots': 'tree'}}
    """
    head, *pairs = text.split(",")
    weight, star, name = head.rpartition("*")
    try:
        factor = float(weight) if star else 1.0
    except ValueError:
        raise UserError(f"--estimator {text!r}: expected [weight*]name[,option=value ...]") from None
    if factor == 0:
        raise UserError(f"--estimator {text!r}: a term of weight 0 adds nothing; leave it out")
    options = dict(pair.partition("=")[::2] for pair in pairs)
    mask = options.pop("mask", None)
    if not name or not all("=" in pair and not pair.startswith("=") for pair in pairs):
        raise UserError(f"--estimator {text!r}: expected [weight*]name[,option=value ...]")
    return _term(name.strip(), factor, mask, options)


def _term(name: str, weight: float, mask: str | None, options: Mapping[str, Any]) -> ScoreTerm:
    if mask is None:
        return {"estimator": name, "weight": weight, "options": dict(options)}
    return {"estimator": name, "weight": weight, "mask": mask, "options": dict(options)}
