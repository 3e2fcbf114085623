"""What may stand in a line of a tree file: names, types, limits, defaults; checks.py holds lines to it.

A tree is an object with `schema`, `prompt_id`, `tree_id` and `nodes`; a node one with `id`, `parent` and
`reward`. Every other field that is named here is optional (null says the same as leaving it out); fields
that are not named here are nobody's business and stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.types import NodeStatus

SCHEMA = "treegrpo.tree/1"
STATUS_CODES = {status.name.lower(): int(status) for status in NodeStatus}
"""The file's names of statuses and the core's codes."""

UNREWARDED = {"open", "pruned", "error"}
MAX_U32 = 2**32 - 1
MAX_F32 = 3.4028234663852886e38
COUNTS = ("policy_version", "round", "draw", "depth", "num_leaves")
NODE_TYPES: dict[str, tuple[type, ...]] = {
    "status": (str,),
    "token_ids": (list,),
    "sampled": (list,),
    "tool_call_spans": (list,),
    "logprobs": (list,),
    "text": (str,),
    "observation": (str,),
    "kept": (bool,),
    "policy_version": (int,),
    "round": (int,),
    "draw": (int,),
    "entropy": (int, float),
    "confidence": (int, float),
    "state_key": (str,),
    "error": (str,),
    "depth": (int,),
    "num_leaves": (int,),
    "value": (int, float),
    "advantage": (int, float),
    "leaf_advantage": (int, float),
    "node_advantage": (int, float),
    "weight": (int, float),
    "unmasked_advantage": (int, float),
    "unmasked_leaf_advantage": (int, float),
    "unmasked_node_advantage": (int, float),
}
NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}

Fields = dict[str, Any]


def status_of(node: Fields, is_inner: bool) -> str:
    """A node's status, with the default where the file leaves it out."""
    return node.get("status") or ("open" if is_inner else "done")


def inner_nodes(nodes: Sequence[Fields]) -> set[int]:
    """Ids of the nodes that have children."""
    return {node["parent"] for node in nodes if node["parent"] is not None}


def sampled_mask(node: Fields) -> list[bool]:
    """One flag a token of the node: whether the policy sampled it."""
    mask = [False] * len(node.get("token_ids") or ())
    for start, end in node.get("sampled") or ():
        mask[start:end] = [True] * (end - start)
    return mask


def spans_of(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The [start, end) pairs of what is True in a mask."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return edges.reshape(-1, 2).tolist()


def lie_within(spans: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> bool:
    """Whether each of the [start, end) spans lies within one of the others.

    >>> lie_within([[1, 2], [4, 4]], [[0, 2], [3, 6]]), lie_within([[1, 4]], [[0, 2], [3, 6]])
    (True, False)
    """
    return all(any(first <= start <= end <= last for first, last in others) for start, end in spans)


def shown(value: Any) -> str:
    """A value in an error message: on one line, and short."""
    text = repr(value) if not isinstance(value, (list, dict)) else f"{NAMES[type(value)]} of {len(value)}"
    return text if len(text) <= 60 else f"{text[:57]}..."
