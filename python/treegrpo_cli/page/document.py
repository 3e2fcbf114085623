"""Columns + static files -> one HTML document that loads nothing and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from treegrpo_cli.page.columns import index, tree_block
from treegrpo_cli.page.embed import json_block
from treegrpo_cli.page.groups import Group
from treegrpo_cli.page.vocabulary import Vocabularies

SCRIPTS = (
    *("data.js", "state.js", "texts.js", "rows.js", "names.js", "list.js", "tree.js", "tokens.js", "node.js"),
    *("align.js", "siblings.js", "estimators.js"),
    *("theme.js", "gaps.js", "chart.js", "steps.js", "search.js", "filters.js", "keys.js", "address.js", "start.js"),
)
"""In the order in which they are joined: `data.js` makes what the others use, `start.js` starts them all."""
STYLES = ("page.css", "panels.css", "controls.css")
FIELD = re.compile(r"\{\{(\w+)\}\}")


def document(
    groups: Sequence[Group], vocabularies: Vocabularies, title: str, links: Sequence[dict[str, str]] = ()
) -> bytes:
    """The page of some prompts. `links` lead to other pages of the same trees: dicts of `label` and `href`."""
    contents = index(groups, title, vocabularies.place) | {"links": list(links)}
    records = [record for group in groups for record in group.records]
    blocks = [json_block("treegrpo-index", contents)]
    blocks += [json_block(f"treegrpo-tree-{place}", tree_block(record)) for place, record in enumerate(records)]
    blocks += [json_block("treegrpo-vocabularies", vocabularies.blocks())]
    return framed("frame.html", title, b"".join(blocks), SCRIPTS, STYLES)


def framed(frame: str, title: str, blocks: bytes, scripts: Sequence[str], styles: Sequence[str]) -> bytes:
    """A document of blocks of data, and of the scripts and styles that alone its policy allows."""
    script, style = joined(scripts), joined(styles)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    fields = {"policy": policy, "title": html.escape(_plain(title)), "style": style, "script": script}
    head, tail = static(frame).split("{{data}}")
    return b"".join((_filled(head, fields), blocks, _filled(tail, fields)))


def _filled(frame: str, fields: dict[str, str]) -> bytes:
    return FIELD.sub(lambda found: fields[found[1]], frame).encode()


def joined(names: Sequence[str]) -> str:
    """Static files as one text."""
    return "".join(static(name) for name in names)


@cache
def static(name: str) -> str:
    """The text of a static file of the package."""
    return (resources.files("treegrpo_cli.page") / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _plain(title: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in title)
