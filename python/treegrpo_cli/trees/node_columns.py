"""Forest -> what functions of the user's own read: read-only arrays with an entry a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli._core import NO_PARENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli._core import Forest

    Columns = Mapping[str, NDArray[Any]]

OF_TOKENS = ("token_ids", "sampled", "tool_call", "logprobs", "entropies")


def columns_of(forest: Forest) -> dict[str, NDArray[Any]]:
    """All columns, [N]; those of tokens [U], `token_start` [N + 1]; no row can be added to the forest afterwards."""
    scored, columns = forest.score("grpo", {"scale": "none"}), dict(forest.columns())
    parent, num_nodes = columns["parent"], forest.num_nodes
    num_tokens = np.diff(columns["token_start"].astype(np.int64))
    of_token = np.repeat(np.arange(num_nodes), num_tokens)
    inner = parent[parent != NO_PARENT].astype(np.int64)
    columns |= {
        "prompt": columns["prompt"][columns["tree"]],
        "depth": scored.depth,
        "num_leaves": scored.num_leaves,
        "value": scored.value,
        "num_children": np.bincount(inner, minlength=num_nodes),
        "num_tokens": num_tokens,
        "num_sampled": forest.gen_tokens(),
        "logprob": np.bincount(of_token, columns["logprobs"], num_nodes),
    }
    del columns["root"]
    return {name: read_only(column) for name, column in columns.items()}


def by_prompt(columns: Columns) -> Iterator[tuple[NDArray[np.intp], dict[str, NDArray[Any]]]]:
    """Yield the nodes of each prompt and their own columns: nodes and trees are numbered from 0 in them."""
    prompts, first, group = np.unique(columns["prompt"], return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(group, minlength=len(prompts)))[:-1]) if len(prompts) else []
    for place in np.argsort(first):
        yield parts[place], _part(columns, parts[place])


def _part(columns: Columns, nodes: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    starts = columns["token_start"].astype(np.int64)
    sizes = (starts[1:] - starts[:-1])[nodes]
    token_start = np.concatenate(([0], np.cumsum(sizes)))
    tokens = np.repeat(starts[nodes] - token_start[:-1], sizes) + np.arange(token_start[-1])
    part = {
        name: column[tokens if name in OF_TOKENS else nodes]
        for name, column in columns.items()
        if name != "token_start"
    }
    parent = part["parent"]
    own = np.searchsorted(nodes, np.where(parent == NO_PARENT, 0, parent))
    part["parent"] = np.where(parent == NO_PARENT, NO_PARENT, own).astype(np.uint32)
    part["tree"] = np.unique(part["tree"], return_inverse=True)[1].astype(np.uint32)
    part["token_start"] = token_start.astype(np.uint64)
    return {name: read_only(column) for name, column in part.items()}


def read_only(column: NDArray[Any]) -> NDArray[Any]:
    """The same array, which cannot be written."""
    column.flags.writeable = False
    return column
