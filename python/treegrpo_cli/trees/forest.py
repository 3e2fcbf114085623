"""TreeRecords -> Forest: the columns of their nodes, taken a field at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import NO_PARENT, Forest
from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.format import STATUS_CODES, Fields
from treegrpo_cli.trees.tree_record import TreeRecord

OPEN, DONE = STATUS_CODES["open"], STATUS_CODES["done"]
UNSAID = 255
"""In place of a status that the file leaves to its default."""


def to_forest(records: Sequence[TreeRecord], *, tokens: bool = True) -> Forest:
    """One forest of the trees, node by node in their order; prompts are numbered as their ids come."""
    sizes = np.array([len(record.nodes) for record in records], dtype=np.int64)
    prompts = {prompt_id: number for number, prompt_id in enumerate(dict.fromkeys(r.prompt_id for r in records))}
    nodes = list(chain.from_iterable(record.nodes for record in records))
    parent, names = _parents(nodes, sizes), set().union(*nodes)
    return Forest.from_columns(
        prompt=np.array([prompts[record.prompt_id] for record in records], dtype=np.uint32),
        parent=parent,
        tree=np.repeat(np.arange(len(records), dtype=np.uint32), sizes),
        status=_statuses(nodes if "status" in names else (), parent),
        reward=numbers_of(nodes, "reward"),
        round=_rounds(nodes) if "round" in names else None,
        entropy=numbers_of(nodes, "entropy") if "entropy" in names else None,
        confidence=numbers_of(nodes, "confidence") if "confidence" in names else None,
        state_key=_state_keys(nodes) if "state_key" in names else None,
        **(_token_columns(nodes) if tokens else {}),
    )


def numbers_of(nodes: Sequence[Fields], name: str) -> NDArray[np.float64]:
    """A field of numbers of all nodes, NaN where there is none."""
    return np.array(column_of(nodes, name), dtype=np.float64)


def mask_of(spans: Iterable[Sequence[tuple[int, int]] | None], token_start: NDArray[np.int64]) -> NDArray[np.bool_]:
    """One flag a token: whether it lies in its node's spans."""
    bounds = [
        (start + first, start + last)
        for start, pairs in zip(token_start.tolist(), spans, strict=False)
        for first, last in pairs or ()
    ]
    edges = np.zeros(int(token_start[-1]) + 1, dtype=np.int64)
    if bounds:
        first, last = np.array(bounds).T
        np.add.at(edges, first, 1)
        np.add.at(edges, last, -1)
    return np.cumsum(edges)[:-1] > 0


def _parents(nodes: Sequence[Fields], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Parents in the forest: those of the file, behind the nodes of the trees before."""
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    given = np.array([-1 if parent is None else parent for parent in column_of(nodes, "parent")], dtype=np.int64)
    return np.where(given < 0, NO_PARENT, given + starts).astype(np.uint32)


def _statuses(nodes: Sequence[Fields], parent: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Codes of the statuses; a branch is open and a leaf done where `nodes` do not say it, or are none."""
    codes = np.full(len(parent), DONE, dtype=np.uint8)
    codes[parent[parent != NO_PARENT]] = OPEN
    if not nodes:
        return codes
    given = np.array([STATUS_CODES.get(status, UNSAID) for status in column_of(nodes, "status")], dtype=np.uint8)
    return np.where(given == UNSAID, codes, given)


def _rounds(nodes: Sequence[Fields]) -> NDArray[np.uint32] | None:
    """The rounds in which nodes were drawn; None where a turn does not say its own."""
    given = column_of(nodes, "round")
    if any(number is None and node["parent"] is not None for number, node in zip(given, nodes, strict=True)):
        return None
    return np.array([number or 0 for number in given], dtype=np.uint32)


def _state_keys(nodes: Sequence[Fields]) -> NDArray[np.uint64]:
    """A number for each key of a state, 0 where there is none."""
    given = column_of(nodes, "state_key")
    numbers: dict[str | None, int] = {None: 0}
    return np.array([numbers.setdefault(key, len(numbers)) for key in given], dtype=np.uint64)


def _tool_calls(nodes: Sequence[Fields], token_start: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which tokens are part of a tool call; None where a turn does not say."""
    given = column_of(nodes, "tool_call_spans")
    if any(spans is None and node["parent"] is not None for spans, node in zip(given, nodes, strict=True)):
        return None
    return mask_of(given, token_start)


def _token_columns(nodes: Sequence[Fields]) -> Mapping[str, Any]:
    token_ids = [tokens or () for tokens in column_of(nodes, "token_ids")]
    token_start = np.array([0, *accumulate(map(len, token_ids))], dtype=np.int64)
    sampled = mask_of(column_of(nodes, "sampled"), token_start)
    num_sampled = np.diff(np.concatenate(([0], np.cumsum(sampled)))[token_start])
    known = column_of(nodes, "logprobs")
    logprobs = np.zeros(len(sampled), dtype=np.float32)
    logprobs[sampled] = list(
        chain.from_iterable(given or (0.0,) * number for given, number in zip(known, num_sampled.tolist(), strict=True))
    )
    return {
        "policy_version": np.array([version or 0 for version in column_of(nodes, "policy_version")], dtype=np.uint32),
        "token_start": token_start.astype(np.uint64),
        "token_ids": np.array(list(chain.from_iterable(token_ids)), dtype=np.uint32),
        "sampled": sampled,
        "tool_call": _tool_calls(nodes, token_start),
        "logprobs": logprobs,
    }
