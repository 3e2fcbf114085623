"""Trees -> columns of their nodes, leaves and tokens: what the file says, none where it says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import NO_PARENT
from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.columns import Column, Columns, Names, Numbers, Texts, or_missing, taken
from treegrpo_cli.trees.forest import mask_of, numbers_of, to_forest
from treegrpo_cli.trees.forest_tables import (
    Arrays,
    leaf_rows,
    path_totals,
    status_names,
    token_columns,
)
from treegrpo_cli.trees.format import NODE_TYPES, Fields
from treegrpo_cli.trees.terms import PARTS
from treegrpo_cli.trees.tree_record import TreeRecord

OUTCOME = ("reward", "num_leaves", "value", "advantage")
WHERE_KNOWN = (*PARTS, "kept", "policy_version", "round", "draw", "entropy", "confidence")
"""Fields that are a column where a node has them."""
WORDS = ("text", "observation")
TAKEN = {"id", "parent", "status", "depth", *OUTCOME, *WHERE_KNOWN, *WORDS} | {
    *("prompt_id", "tree_id", "node_id", "parent_id", "num_children"),
    *("num_tokens", "num_sampled", "logprob", "path_tokens", "path_sampled"),
}
NONE = type(None)


def record_columns(records: Sequence[TreeRecord], rows: str) -> Columns:
    """The columns of some trees, in their order. `rows` are `nodes`, `leaves` or `tokens`."""
    nodes = list(chain.from_iterable(record.nodes for record in records))
    arrays = to_forest(records, tokens=rows == "tokens").columns()
    columns = _ids(records, arrays) | _outcomes(nodes, arrays)
    if rows == "tokens":
        return _tokens(nodes, arrays, columns)
    columns |= _sizes(nodes)
    columns |= {name: Texts(column_of(nodes, name)) for name in WORDS} | _others(nodes)
    if rows == "nodes":
        return columns
    return taken(columns | _paths(nodes, arrays), leaf_rows(arrays))


def _ids(records: Sequence[TreeRecord], arrays: Arrays) -> Columns:
    """Of the prompt, the tree, the node and its parent, as in the file."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(record.prompt_id for record in records))}
    prompts = np.array([codes[record.prompt_id] for record in records], dtype=np.int32)
    tree_ids = np.array([record.tree_id for record in records], dtype=np.uint32)
    tree, parent = arrays["tree"], arrays["parent"].astype(np.int64)
    root, is_root = arrays["root"].astype(np.int64)[tree], parent == NO_PARENT
    return {
        "prompt_id": Names(prompts[tree], list(codes)),
        "tree_id": Numbers(tree_ids[tree]),
        "node_id": Numbers(np.arange(len(parent)) - root),
        "parent_id": Numbers(np.where(is_root, 0, parent - root), is_root),
    }


def _outcomes(nodes: Sequence[Fields], arrays: Arrays) -> Columns:
    """Where a node stands, how it ended, its scores, and how it was drawn."""
    names = set().union(*nodes)
    columns: Columns = {"depth": Numbers(arrays["depth"].astype(np.int64)), "status": status_names(arrays["status"])}
    fields = (*OUTCOME, *(name for name in WHERE_KNOWN if name in names))
    return columns | {name: _field(nodes, name) for name in fields}


def _field(nodes: Sequence[Fields], name: str) -> Numbers:
    """A field of the format: numbers where it takes those, counts, or flags."""
    types = NODE_TYPES.get(name, (float,))
    if float in types:
        numbers = numbers_of(nodes, name)
        return Numbers(numbers, np.isnan(numbers))
    return _filled(column_of(nodes, name), np.bool_ if bool in types else np.int64)


def _filled(values: Sequence[Any], dtype: type[np.generic]) -> Numbers:
    missing = np.array([value is None for value in values], dtype=np.bool_)
    return Numbers(np.array([value or 0 for value in values], dtype=dtype), missing)


def _sizes(nodes: Sequence[Fields]) -> Columns:
    """Tokens of each node, those that were sampled, and the log-probability of these together."""
    lacking = ~_says(nodes, "token_ids")
    sums = [sum(logprobs) if logprobs else np.nan for logprobs in column_of(nodes, "logprobs")]
    tokens, sampled = _num_tokens(nodes)
    return {
        "num_tokens": Numbers(tokens, lacking),
        "num_sampled": Numbers(sampled, lacking),
        "logprob": or_missing(np.array(sums, dtype=np.float64)),
    }


def _num_tokens(nodes: Sequence[Fields]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    tokens = [len(given or ()) for given in column_of(nodes, "token_ids")]
    sampled = [sum(end - start for start, end in spans or ()) for spans in column_of(nodes, "sampled")]
    return np.array(tokens, dtype=np.int64), np.array(sampled, dtype=np.int64)


def _paths(nodes: Sequence[Fields], arrays: Arrays) -> Columns:
    """Tokens from the root to each node; none where a node of the path does not say its own."""
    parent, (tokens, sampled) = arrays["parent"], _num_tokens(nodes)
    lacking = path_totals(parent, (~_says(nodes, "token_ids")).astype(np.int64)) > 0
    return {
        "path_tokens": Numbers(path_totals(parent, tokens), lacking),
        "path_sampled": Numbers(path_totals(parent, sampled), lacking),
    }


def _says(nodes: Sequence[Fields], name: str) -> NDArray[np.bool_]:
    """Which nodes have the field."""
    return np.array([value is not None for value in column_of(nodes, name)], dtype=np.bool_)


def _others(nodes: Sequence[Fields]) -> Columns:
    """Fields that the format does not know, where they are flags, numbers or text throughout."""
    names = dict.fromkeys(chain.from_iterable(nodes))
    columns = {name: _guessed(column_of(nodes, name)) for name in names if name not in TAKEN}
    return {name: column for name, column in columns.items() if column is not None}


def _guessed(values: Sequence[Any]) -> Column | None:
    types = set(map(type, values)) - {NONE}
    try:
        if types == {str}:
            return Texts(values)
        if types in ({bool}, {int}):
            return _filled(values, np.bool_ if bool in types else np.int64)
        if types and types <= {int, float}:
            numbers = np.array(values, dtype=np.float64)
            return Numbers(numbers, np.isnan(numbers))
    except OverflowError:  # an integer of more than 64 bits
        pass
    return None


def _tokens(nodes: Sequence[Fields], arrays: Arrays, columns: Columns) -> Columns:
    calls = mask_of(column_of(nodes, "tool_call_spans"), arrays["token_start"].astype(np.int64))  # also where some lack
    named = {name: columns[name] for name in ("advantage", "unmasked_advantage") if name in columns}
    return token_columns(
        {**arrays, "tool_call": calls},
        columns,
        knows_logprobs=_says(nodes, "logprobs"),
        knows_calls=_says(nodes, "tool_call_spans"),
        scores={name: column.values for name, column in named.items() if isinstance(column, Numbers)},
    )
