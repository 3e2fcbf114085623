"""Pages of a folder -> the index that leads to them: figures of every prompt, and of every depth by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np

from treegrpo_cli import __version__
from treegrpo_cli.page.document import framed
from treegrpo_cli.page.embed import json_block
from treegrpo_cli.page.folder import PAGES, page_name
from treegrpo_cli.page.groups import Group
from treegrpo_cli.trees.forest import numbers_of
from treegrpo_cli.trees.summary import Summary

MAX_QUESTION = 300
"""Characters of a question that stand in the index."""

SCRIPTS = (*("listing_data.js", "texts.js", "rows.js", "theme.js", "chart.js", "listing.js"),)
STYLES = ("page.css", "controls.css", "listing.css")


class Listing:
    """The entries of an index: a few numbers and words for every prompt of every step."""

    def __init__(self) -> None:
        self._entries: dict[str, list[Any]] = {
            name: [] for name in ("id", "question", "step", "trees", "nodes", "leaves", "mean", "std", "href")
        }
        self._steps: dict[int, Summary] = {}

    def add(self, groups: Iterable[Group], page: int) -> None:
        """Enter the prompts of a page."""
        for group in groups:
            first = group.records[0]
            nodes = [node for record in group.records for node in record.nodes]
            rewards = numbers_of(nodes, "reward")
            rewards = rewards[~np.isnan(rewards)]
            question = (first.task or {}).get("question")
            entry = {
                "id": first.prompt_id,
                "question": question[:MAX_QUESTION] if isinstance(question, str) else "",
                "step": group.step,
                "trees": len(group.records),
                "nodes": len(nodes),
                "leaves": len(rewards),
                "mean": _known(rewards.mean()) if len(rewards) else None,
                "std": _known(rewards.std()) if len(rewards) else None,
                "href": f"{PAGES}/{page_name(page)}#{urlencode(_names(group))}",
            }
            for name, value in entry.items():
                self._entries[name].append(value)
            if group.step is not None:
                self._steps.setdefault(group.step, Summary()).add_group(group.records)

    def document(self, title: str) -> bytes:
        """The index as a page."""
        contents = {"version": __version__, "title": title, "prompts": self._entries, "steps": self._depths()}
        return framed("listing.html", title, json_block("treegrpo-listing", contents), SCRIPTS, STYLES)

    def _depths(self) -> list[dict[str, Any]]:
        """For each step the mean gap between siblings at each depth from 1, and the depth's share of |advantage|."""
        found = []
        for step, summary in sorted(self._steps.items()):
            levels = summary.to_json()["depths"][1:]
            shares = [_known(level["abs_advantage_share"]) for level in levels]
            found.append({"step": step, "gap": [_known(level["gap"]) for level in levels], "share": shares})
        return found


def _names(group: Group) -> dict[str, Any]:
    names: dict[str, Any] = {"prompt": group.records[0].prompt_id}
    return names if group.step is None else names | {"step": group.step}


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def links(number: int, is_last: bool) -> Sequence[dict[str, str]]:
    """From a page of the folder to the index and to its neighbours."""
    found = [{"label": "all prompts", "href": "../index.html"}]
    if number:
        found.append({"label": "previous page", "href": page_name(number - 1)})
    if not is_last:
        found.append({"label": "next page", "href": page_name(number + 1)})
    return found
