"""Nodes -> whether they are plainly valid, a column at a time; what is not goes to the checks that say why.

Each check here is one of `checks.check_tree`, for all nodes at once and without a message. Where one fails, or
stumbles over a value, nothing is decided: the slow check looks at the nodes one by one and names the first fault.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import isfinite
from operator import itemgetter, lt
from typing import Any

from treegrpo_cli.trees.format import COUNTS, NODE_TYPES, STATUS_CODES, UNREWARDED, Fields, lie_within

Column = Sequence[Any]

NONE = type(None)
TYPES = {name: frozenset((NONE, *types)) for name, types in (NODE_TYPES | {"reward": (int, float)}).items()}
SCORED = ("depth", "num_leaves", "value", "advantage")
TOKEN_FIELDS = {"token_ids", "sampled", "tool_call_spans", "logprobs"}
STATUSES = {None, *STATUS_CODES}


def are_plainly_valid(nodes: Sequence[Any], *, scored: bool) -> bool:
    """Whether nodes follow the format, `scored` ones with what scoring adds; False where it takes a closer look."""
    try:
        return set(map(type, nodes)) == {dict} and _fit(nodes, scored)
    except (KeyError, TypeError, ValueError, OverflowError, struct.error):
        return False


def column_of(nodes: Sequence[Fields], name: str) -> list[Any]:
    """A field of all nodes, None where it is left out."""
    try:
        return list(map(itemgetter(name), nodes))
    except KeyError:
        return [node.get(name) for node in nodes]


def _fit(nodes: Sequence[Fields], scored: bool) -> bool:
    names = set().union(*nodes)
    ids, parents, rewards = (list(map(itemgetter(name), nodes)) for name in ("id", "parent", "reward"))
    if scored and not all(map(set(SCORED).issubset, nodes)):
        return False
    columns = {name: column_of(nodes, name) for name in names & NODE_TYPES.keys()}
    return (
        all(_has_type(column, TYPES[name]) for name, column in columns.items())
        and _are_linked(ids, parents)
        and _has_type(rewards, TYPES["reward"])
        and _are_outcomes(rewards, set(parents[1:]), columns)
        and _are_tokens(len(nodes), columns)
        and all(_are_unsigned(list(filter(None, columns[name]))) for name in COUNTS if name in columns)
        and _are_rounds(columns.get("round"), parents)
        and not (scored and (None in columns["depth"] or None in columns["num_leaves"]))
    )


def _has_type(column: Column, types: frozenset[type]) -> bool:
    """Whether a column holds these types alone, its numbers finite, as a finite sum shows."""
    return types.issuperset(map(type, column)) and (float not in types or isfinite(sum(filter(None, column))))


def _are_linked(ids: Column, parents: Column) -> bool:
    places = range(len(ids))
    return (
        set(map(type, ids)) == {int}
        and ids == list(places)
        and parents[0] is None
        and set(map(type, parents[1:])) <= {int}
        and min(parents[1:], default=0) >= 0
        and all(map(lt, parents[1:], places[1:]))
    )


def _are_outcomes(rewards: Column, inner: set[int], columns: Mapping[str, Column]) -> bool:
    rewarded = [place for place, reward in enumerate(rewards) if reward is not None]
    if rewards[0] is not None or not inner.isdisjoint(rewarded):
        return False
    status, kept = columns.get("status"), columns.get("kept")
    if status is not None and not (
        set(status) <= STATUSES
        and {status[place] for place in inner} <= {None, "open"}
        and UNREWARDED.isdisjoint({status[place] for place in rewarded})
    ):
        return False
    return kept is None or (False not in [kept[place] for place in inner] and False not in [kept[p] for p in rewarded])


def _are_tokens(num_nodes: int, columns: Mapping[str, Column]) -> bool:
    if columns.keys().isdisjoint(TOKEN_FIELDS):
        return True
    nothing: Column = [None] * num_nodes
    token_ids = columns.get("token_ids", nothing)
    lengths = [len(tokens) if tokens else 0 for tokens in token_ids]
    num_sampled = [
        _num_sampled(spans, length) if spans else 0
        for spans, length in zip(columns.get("sampled", nothing), lengths, strict=True)
    ]
    sampled, calls = columns.get("sampled", nothing), columns.get("tool_call_spans", nothing)
    num_in_calls = [_num_sampled(spans, length) if spans else 0 for spans, length in zip(calls, lengths, strict=True)]
    logprobs = columns.get("logprobs", nothing)
    return (
        num_sampled[0] == 0
        and min(num_in_calls) >= 0
        and all(lie_within(spans, within or ()) for spans, within in zip(calls, sampled, strict=True) if spans)
        and min(num_sampled) == 0
        and all(map(_is_complete, logprobs, num_sampled))
        and _are_token_ids(_flat(token_ids))
        and _are_logprobs(_flat(logprobs))
    )


def _are_rounds(rounds: Column | None, parents: Column) -> bool:
    """Whether no node was drawn in an earlier round than its parent."""
    if rounds is None:
        return True
    drawn = [number or 0 for number in rounds]
    return all(drawn[parent] <= number for parent, number in zip(parents[1:], drawn[1:], strict=True))


def _num_sampled(spans: list[Any], length: int) -> int:
    """How many tokens the spans hold; -1 where they do not fit."""
    before = num_sampled = 0
    for span in spans:
        start, end = span
        if type(span) is not list or type(start) is not int or type(end) is not int:
            return -1
        if not before <= start <= end <= length:
            return -1
        before, num_sampled = end, num_sampled + end - start
    return num_sampled


def _is_complete(logprobs: Column | None, num_sampled: int) -> bool:
    return logprobs is None or len(logprobs) == num_sampled


def _flat(lists: Iterable[Column | None]) -> list[Any]:
    return list(chain.from_iterable(filter(None, lists)))


def _are_unsigned(column: Column) -> bool:
    """Whether integers or flags fit 32 bits; raises where they do not, or are something else."""
    return len(array("I", column)) == len(column)


def _are_token_ids(column: Column) -> bool:
    return _are_unsigned(column) and ((0 not in column and 1 not in column) or set(map(type, column)) == {int})


def _are_logprobs(column: Column) -> bool:
    """Whether these are finite numbers that float32 holds; packing raises where it does not."""
    return set(map(type, column)) <= {int, float} and isfinite(sum(column)) and _fit_float32(column)


def _fit_float32(column: Column) -> bool:
    packed = struct.Struct(f"<{len(column)}f").pack(*column)  # struct.pack would keep the format of each length
    return len(packed) == 4 * len(column)
