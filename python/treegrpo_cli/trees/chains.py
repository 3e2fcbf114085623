"""Plain rows -> trees: the rows of a prompt share the tokens with which they begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import NO_PARENT, Forest
from treegrpo_cli.errors import UserError
from treegrpo_cli.trees.chain import Chain, read_chain
from treegrpo_cli.trees.collection import Trees
from treegrpo_cli.trees.format import STATUS_CODES, Fields, spans_of
from treegrpo_cli.trees.tree_record import TreeRecord

STATUS_NAMES = {code: name for name, code in STATUS_CODES.items()}


def from_chains(rollouts: Iterable[Mapping[str, Any]]) -> Trees:
    """Merge rows of tokens, each one rollout from its prompt to its end, into unscored trees.

    A row is a dict of lists or arrays:

    - `input_ids` with `loss_mask`, True where the policy sampled the token, and `attention_mask` where it is padded;
      or `prompt_ids` and `completion_ids`, with a `loss_mask` of the completion where not all of it was sampled
    - `reward`: a number, or None for a row that is left out of every mean
    - `prompt_id`, or `group`: which rows are compared; without either, those with equal prompts
    - `logprobs`, optional: nats, one for each token, token of the completion, or sampled token
    - `tree_id` (0), `status` (`done`), `policy_version` (0), `task` (a dict that the tree keeps)
    - everything else becomes a field of the row's leaf; an `id` is kept as `row_id`

    The rows of a prompt_id and tree_id are one tree, in the order of their first rows: the root is their prompt, and
    they go together while tokens and mask are equal. A node ends where rows part and where a turn ends, that is in
    front of a sampled token behind an observed one. Of shared tokens the first row's log-probabilities stand.

    Raises UserError that names the row, counted from 0.

    >>> rows = [{"prompt_ids": [5], "completion_ids": [7, tail], "reward": tail - 8} for tail in (8, 9)]
    >>> [tree] = from_chains(rows)
    >>> [(node["parent"], node["token_ids"], node["reward"]) for node in tree.nodes]
    [(None, [5], None), (0, [7], None), (1, [8], 0.0), (1, [9], 1.0)]
    """
    chains = [read_chain(row, fields) for row, fields in enumerate(rollouts)]
    if not chains:
        return Trees()
    groups = _groups(chains)
    forest, leaf_of = _merged(chains, groups)
    trees = forest.columns()["tree"]
    starts = np.searchsorted(trees, np.arange(len(groups) + 1))
    leaves = {int(leaf): chain for leaf, chain in zip(leaf_of, chains, strict=True)}
    return Trees(
        _record(prompt_id, tree_id, forest, range(int(starts[tree]), int(starts[tree + 1])), leaves, rows)
        for tree, ((prompt_id, tree_id), rows) in enumerate(groups.items())
    )


def _groups(chains: Sequence[Chain]) -> dict[tuple[str, int], list[Chain]]:
    """(prompt_id, tree_id) -> its rows, which have one prompt; the trees of a prompt stand together."""
    named: dict[bytes, str] = {}
    by_prompt: dict[str, dict[int, list[Chain]]] = {}
    for chain in chains:
        prompt = chain.prompt.tobytes()
        prompt_id = chain.prompt_id if chain.prompt_id is not None else named.setdefault(prompt, f"{len(named):08d}")
        rows = by_prompt.setdefault(prompt_id, {}).setdefault(chain.tree_id, [])
        first = next(iter(by_prompt[prompt_id].values()))[:1] or [chain]
        if first[0].prompt.tobytes() != prompt:
            raise UserError(
                f"row {chain.row}: its prompt, the tokens in front of the first sampled one, is not that of "
                f"row {first[0].row}, which has the same prompt_id {prompt_id!r}"
            )
        rows.append(chain)
    return {(prompt_id, tree_id): rows for prompt_id, trees in by_prompt.items() for tree_id, rows in trees.items()}


def _merged(
    chains: Sequence[Chain], groups: Mapping[tuple[str, int], Sequence[Chain]]
) -> tuple[Forest, NDArray[np.uint32]]:
    """One forest, a tree a group in their order, and the leaf of each row in the order of `chains`."""
    ordered = [chain for rows in groups.values() for chain in rows]
    zeros = {chain.row: np.zeros(len(chain.sampled), dtype=np.float32) for chain in ordered if chain.logprobs is None}
    forest, leaf_of = Forest.from_chains(
        row_start=np.array([0, *accumulate(len(chain.token_ids) for chain in ordered)], dtype=np.uint64),
        token_ids=np.concatenate([chain.token_ids for chain in ordered]),
        sampled=np.concatenate([chain.sampled for chain in ordered]),
        logprobs=np.concatenate([zeros.get(chain.row, chain.logprobs) for chain in ordered]),
        prompt=np.repeat(np.arange(len(groups), dtype=np.uint32), [len(rows) for rows in groups.values()]),
        reward=np.array([chain.reward for chain in ordered]),
        status=np.array([chain.status for chain in ordered], dtype=np.uint8),
        policy_version=np.array([chain.policy_version for chain in ordered], dtype=np.uint32),
    )
    place = np.empty(len(ordered), dtype=np.uint32)
    place[[chain.row for chain in ordered]] = leaf_of
    return forest, place


def _record(
    prompt_id: str,
    tree_id: int,
    forest: Forest,
    span: range,
    leaves: Mapping[int, Chain],
    rows: Sequence[Chain],
) -> TreeRecord:
    columns, knows = forest.columns(), all(chain.logprobs is not None for chain in rows)
    nodes = [_node(columns, node, span.start, leaves.get(node), knows) for node in span]
    task = next((chain.task for chain in rows if chain.task is not None), None)
    return TreeRecord(prompt_id=prompt_id, tree_id=tree_id, nodes=nodes, task=task)


def _node(columns: Mapping[str, Any], node: int, first: int, chain: Chain | None, knows_logprobs: bool) -> Fields:
    tokens = slice(*map(int, columns["token_start"][node : node + 2]))
    sampled, parent, reward = columns["sampled"][tokens], int(columns["parent"][node]), float(columns["reward"][node])
    fields: Fields = {
        "id": node - first,
        "parent": None if parent == NO_PARENT else parent - first,
        "status": STATUS_NAMES[int(columns["status"][node])],
        "reward": None if np.isnan(reward) else reward,
        "token_ids": columns["token_ids"][tokens].tolist(),
        "sampled": spans_of(sampled),
    }
    if knows_logprobs:
        fields["logprobs"] = columns["logprobs"][tokens][sampled].tolist()
    fields["policy_version"] = int(columns["policy_version"][node])
    return fields if chain is None else {**chain.extra, **fields}
