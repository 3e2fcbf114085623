"""A table of settings -> what each of its keys means: the strings below them in its source.

The source is read when somebody asks, not while the settings are imported, and from a wheel too.
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import find_spec
from itertools import pairwise

from pydantic import BaseModel


@cache
def meanings(table: type[BaseModel]) -> dict[str, str]:
    """Return key -> meaning, each paragraph on one line; a key without one is left out.

    >>> from treegrpo_cli.config import LimitsConfig
    >>> meanings(LimitsConfig)["max_lines"]
    'Most lines of one file, blank ones included.'
    """
    [body] = [
        node.body
        for node in _syntax(table.__module__).body
        if isinstance(node, ast.ClassDef) and node.name == table.__name__
    ]
    found = {}
    for field, below in pairwise(body):
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Constant):
            found[field.target.id] = unwrapped(str(text.value))
    return found


def unwrapped(docstring: str) -> str:
    """Put each paragraph of a docstring on one line."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(docstring).split("\n\n"))


def first_sentence(text: str) -> str:
    """Return what stands before the first full stop, with it.

    >>> first_sentence("Share of the card. Lower it by 0.1.")
    'Share of the card.'
    """
    sentence = re.match(r".+?\.(?=\s|$)", text)
    return sentence.group() if sentence else text


@cache
def _syntax(module: str) -> ast.Module:
    spec = find_spec(module)
    loader = spec.loader if spec else None
    assert isinstance(loader, InspectLoader), f"{module} has no source"
    return ast.parse(loader.get_source(module) or "")
