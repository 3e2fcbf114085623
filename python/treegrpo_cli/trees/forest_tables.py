"""Forest or Scores -> columns of nodes, leaves and tokens; the forest's own are taken as they are, without a copy.

`prompt_id`, `tree_id` and `node_id` are the forest's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import NO_PARENT, Forest, Scores
from treegrpo_cli.trees.columns import Column, Columns, Names, Numbers, or_missing, taken
from treegrpo_cli.trees.format import STATUS_CODES
from treegrpo_cli.trees.terms import parts_of

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""A forest's columns, by their names."""


def forest_columns(forest: Forest, rows: str) -> Columns:
    """The columns of a forest as it stands; it may grow on. `rows` are `nodes`, `leaves` or `tokens`."""
    return _columns(forest.snapshot(), {}, None, rows)


def scores_columns(scores: Scores, rows: str) -> Columns:
    """The same with values and advantages. Raises ValueError where the forest has changed since."""
    given = {"value": scores.value, "advantage": scores.advantage, **parts_of(scores)}
    scored: Columns = {"num_leaves": Numbers(scores.num_leaves)}
    return _columns(scores.forest, scored | {name: or_missing(given[name]) for name in given}, given, rows)


def status_names(codes: NDArray[np.uint8]) -> Names:
    """How nodes ended, in the file's words."""
    return Names(codes.astype(np.int32), list(STATUS_CODES))


def sizes_of(columns: Arrays) -> dict[str, NDArray[np.int64]]:
    """Tokens of each node, and those of them that the policy sampled, [N]."""
    start = columns["token_start"].astype(np.int64)
    sampled = np.concatenate(([0], np.cumsum(columns["sampled"], dtype=np.int64)))
    return {"num_tokens": np.diff(start), "num_sampled": np.diff(sampled[start])}


def summed(columns: Arrays) -> NDArray[np.float64]:
    """The log-probability of all sampled tokens of each node together, nats, [N]."""
    sizes = sizes_of(columns)["num_tokens"]
    of_token = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(of_token, columns["logprobs"], len(sizes)).astype(np.float64)  # of nothing it counts


def path_totals(parent: NDArray[np.uint32], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum over each node's path from the root, itself included, [N]."""
    totals: list[int] = []
    for above, size in zip(parent.tolist(), own.tolist(), strict=True):
        totals.append(size if above == NO_PARENT else size + totals[above])
    return np.array(totals, dtype=np.int64)


def leaf_rows(columns: Arrays) -> NDArray[np.intp]:
    """The nodes without children, ascending."""
    is_leaf = np.ones(len(columns["parent"]), dtype=np.bool_)
    is_leaf[columns["parent"][columns["parent"] != NO_PARENT]] = False
    return np.flatnonzero(is_leaf)


def token_columns(
    columns: Arrays,
    nodes: Columns,
    *,
    knows_logprobs: NDArray[np.bool_],
    knows_calls: NDArray[np.bool_],
    scores: Mapping[str, NDArray[np.float64]] | None,
) -> Columns:
    """A row a token: where it stands, what it is, and the advantage that its node shows.

    `knows_logprobs`, `knows_calls`: nodes that say them, [N]. `position` counts the tokens above it on its path.
    """
    sizes = sizes_of(columns)["num_tokens"]
    node, sampled = np.repeat(np.arange(len(sizes)), sizes), columns["sampled"]
    above = path_totals(columns["parent"], sizes) - sizes - columns["token_start"][:-1].astype(np.int64)
    table: Columns = {name: narrow(nodes[name]).take(node) for name in ("prompt_id", "tree_id", "node_id", "depth")}
    table["position"] = Numbers((np.arange(len(node)) + above[node]).astype(np.int32))
    table["token_id"] = Numbers(columns["token_ids"])
    table["sampled"] = Numbers(sampled)
    if knows_calls.any():
        table["tool_call"] = Numbers(columns["tool_call"], ~knows_calls[node])
    table["logprob"] = Numbers(columns["logprobs"], ~(sampled & knows_logprobs[node]))
    if not np.isnan(columns["entropies"]).all():
        table["entropy"] = or_missing(columns["entropies"])
    if scores is not None:
        advantage = scores["advantage"][node]
        if "unmasked_advantage" in scores:
            advantage = np.where(columns["tool_call"], advantage, scores["unmasked_advantage"][node])
        table["advantage"] = Numbers(advantage.astype(np.float32), ~sampled | np.isnan(advantage))
    return table


def narrow(column: Column) -> Column:
    """Ids in 32 bits where there is one in every row of a long table."""
    if isinstance(column, Numbers) and column.values.dtype == np.int64:
        return Numbers(column.values.astype(np.int32), column.missing)
    return column


def _drawn(forest: Forest) -> Columns:
    """What a forest knows of how its turns were drawn."""
    columns: Arrays = forest.columns()
    drawn: Columns = {"policy_version": Numbers(columns["policy_version"])}
    if forest.knows_rounds:
        drawn["round"] = Numbers(columns["round"])
    known = (name for name in ("entropy", "confidence") if not np.isnan(columns[name]).all())
    return drawn | {name: or_missing(columns[name]) for name in known}


def _columns(forest: Forest, scored: Columns, scores: Mapping[str, NDArray[np.float64]] | None, rows: str) -> Columns:
    columns: Arrays = forest.columns()
    nodes, parent = _ids(columns), columns["parent"]
    nodes |= {"status": status_names(columns["status"]), "reward": or_missing(columns["reward"])}
    if rows == "tokens":
        told = [np.full(len(parent), known) for known in (forest.knows_logprobs, forest.knows_tool_calls)]
        return token_columns(columns, nodes, knows_logprobs=told[0], knows_calls=told[1], scores=scores)
    sizes = sizes_of(columns)
    nodes |= scored | _drawn(forest) | {name: Numbers(size) for name, size in sizes.items()}
    if forest.knows_logprobs:
        nodes["logprob"] = Numbers(summed(columns), sizes["num_sampled"] == 0)
    if rows == "nodes":
        return nodes
    paths: Columns = {name.replace("num", "path"): Numbers(path_totals(parent, size)) for name, size in sizes.items()}
    return taken(nodes | paths, leaf_rows(columns))


def _ids(columns: Arrays) -> Columns:
    parent = columns["parent"]
    return {
        "prompt_id": Numbers(columns["prompt"][columns["tree"]]),
        "tree_id": Numbers(columns["tree"]),
        "node_id": Numbers(np.arange(len(parent), dtype=np.uint32)),
        "parent_id": Numbers(parent, parent == NO_PARENT),
        "depth": Numbers(columns["depth"]),
    }
