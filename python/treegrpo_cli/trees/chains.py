"""Plain rows -> trees: the rows of a prompt share the tokens with which they begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treegrpo_cli._core import NO_PARENT, Forest
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.trees.format import MAX_U32, STATUS_CODES, UNREWARDED, Fields, shown
from treegrpo_cli.trees.tree_record import TreeRecord, json_types

TREES_OWN = {"parent", "token_ids", "sampled", "depth", "num_leaves", "value", "advantage"}
STATUS_NAMES = {code: name for name, code in STATUS_CODES.items()}
ROW_FIELDS = (
    {"prompt_id", "group", "tree_id", "input_ids", "prompt_ids", "completion_ids", "attention_mask", "loss_mask"}
    | {"logprobs", "reward", "status", "policy_version", "task", "extra"}
    | {"advantages", "leaf_id", "node_ids"}  # of a training row, made anew
)


@dataclass(frozen=True, slots=True)
class Chain:
    """A row as columns: T tokens, its group, and what goes to its leaf."""

    row: int
    prompt_id: str | None
    tree_id: int
    token_ids: NDArray[np.uint32]
    sampled: NDArray[np.bool_]
    logprobs: NDArray[np.float32] | None
    reward: float
    status: int
    policy_version: int
    task: Fields | None
    extra: Fields

    @property
    def prompt(self) -> NDArray[np.uint32]:
        """The tokens in front of the first sampled one."""
        return self.token_ids[: int(np.argmax(self.sampled)) if self.sampled.any() else len(self.sampled)]


def from_chains(rollouts: Iterable[Mapping[str, Any]]) -> list[TreeRecord]:
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
    chains = [_chain(row, fields) for row, fields in enumerate(rollouts)]
    if not chains:
        return []
    groups = _groups(chains)
    forest, leaf_of = _merged(chains, groups)
    trees = forest.columns()["tree"]
    starts = np.searchsorted(trees, np.arange(len(groups) + 1))
    leaves = {int(leaf): chain for leaf, chain in zip(leaf_of, chains, strict=True)}
    return [
        _record(prompt_id, tree_id, forest, range(int(starts[tree]), int(starts[tree + 1])), leaves, rows)
        for tree, ((prompt_id, tree_id), rows) in enumerate(groups.items())
    ]


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
        "sampled": _spans(sampled),
    }
    if knows_logprobs:
        fields["logprobs"] = columns["logprobs"][tokens][sampled].tolist()
    fields["policy_version"] = int(columns["policy_version"][node])
    return fields if chain is None else {**chain.extra, **fields}


def _spans(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The [start, end) pairs of a mask's true stretches."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return edges.reshape(-1, 2).tolist()


def _chain(row: int, fields: Mapping[str, Any]) -> Chain:
    try:
        token_ids, sampled, logprobs = _tokens(fields)
        return Chain(
            row=row,
            prompt_id=_prompt_id(fields),
            tree_id=_integer(fields, "tree_id"),
            token_ids=token_ids,
            sampled=sampled,
            logprobs=logprobs,
            reward=_reward(fields),
            status=_status(fields),
            policy_version=_integer(fields, "policy_version"),
            task=fields.get("task"),
            extra=_extra(fields),
        )
    except UserError as error:
        raise UserError(f"row {row}: {error}") from None


def _tokens(fields: Mapping[str, Any]) -> tuple[NDArray[np.uint32], NDArray[np.bool_], NDArray[np.float32] | None]:
    """Token ids, mask and log-probabilities of all tokens, padding left out."""
    if "input_ids" in fields:
        if fields.get("loss_mask") is None:
            raise UserError("input_ids without a loss_mask: nothing says what the policy sampled")
        token_ids, num_prompt = _token_ids(fields, "input_ids"), 0
    elif "prompt_ids" in fields and "completion_ids" in fields:
        prompt = _token_ids(fields, "prompt_ids")
        token_ids, num_prompt = np.concatenate((prompt, _token_ids(fields, "completion_ids"))), len(prompt)
    else:
        raise UserError(f"needs input_ids and loss_mask, or prompt_ids and completion_ids; has {', '.join(fields)}")
    sampled = _whole(fields, "loss_mask", len(token_ids), num_prompt, np.ones(len(token_ids) - num_prompt)) != 0
    kept = _whole(fields, "attention_mask", len(token_ids), num_prompt, np.ones(len(token_ids)), before=1) != 0
    logprobs = fields.get("logprobs")
    if logprobs is not None:
        logprobs = _logprobs(fields, sampled, num_prompt)[kept]
    return token_ids[kept], sampled[kept], logprobs


def _whole(
    fields: Mapping[str, Any], name: str, length: int, num_prompt: int, default: NDArray[Any], before: float = 0
) -> NDArray[np.float64]:
    """A column over all tokens; `before` stands in front of one that is of the completion alone."""
    column = default if fields.get(name) is None else _array(fields[name], name)
    if len(column) == length - num_prompt:
        column = np.concatenate((np.full(num_prompt, before), column))
    if len(column) != length:
        of_completion = f", or {length - num_prompt} of the completion" if num_prompt else ""
        raise UserError(f"{name} has {len(column)} entries for {length} tokens{of_completion}")
    return column


def _logprobs(fields: Mapping[str, Any], sampled: NDArray[np.bool_], num_prompt: int) -> NDArray[np.float32]:
    given = _array(fields["logprobs"], "logprobs")
    if len(given) == sampled.sum() and len(given) not in (len(sampled), len(sampled) - num_prompt):
        column = np.zeros(len(sampled))
        column[sampled] = given
    else:
        column = _whole(fields, "logprobs", len(sampled), num_prompt, given)
    with np.errstate(over="ignore"):
        narrow = np.where(sampled, column, 0).astype(np.float32)
    if not np.isfinite(narrow).all():
        raise UserError("logprobs are finite numbers where the policy sampled")
    return narrow


def _array(value: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        column = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {shown(value)}, expected a list of numbers") from None
    if column.ndim != 1:
        raise UserError(f"{name} has {column.ndim} dimensions, expected 1: a row is one rollout")
    return column


def _token_ids(fields: Mapping[str, Any], name: str) -> NDArray[np.uint32]:
    column = _array(fields[name], name)
    if not ((column >= 0) & (column <= MAX_U32) & (column == np.floor(column))).all():
        raise UserError(f"{name} are integers from 0 to {MAX_U32}")
    return column.astype(np.uint32)


def _prompt_id(fields: Mapping[str, Any]) -> str | None:
    given = json_types(fields.get("prompt_id", fields.get("group")))
    if given is None or type(given) in (str, int):
        return None if given is None else str(given)
    raise UserError(f"prompt_id is {shown(given)}, expected a string")


def _integer(fields: Mapping[str, Any], name: str) -> int:
    given = json_types(fields.get(name) or 0)
    if type(given) is not int or not 0 <= given <= MAX_U32:
        raise UserError(f"{name} is {shown(given)}, expected an integer, 0 or more")
    return given


def _reward(fields: Mapping[str, Any]) -> float:
    if "reward" not in fields:
        raise UserError("has no 'reward' (None where it is unscored)")
    given = json_types(fields["reward"])
    if given is None:
        return float("nan")
    if type(given) not in (int, float, bool) or not abs(given) <= np.finfo(np.float64).max:
        raise UserError(f"reward is {shown(given)}, expected a finite number")
    return float(given)


def _extra(fields: Mapping[str, Any]) -> Fields:
    extra = {name: value for name, value in fields.items() if name not in ROW_FIELDS} | (fields.get("extra") or {})
    if taken := sorted(TREES_OWN & extra.keys()):
        raise UserError(f"{taken[0]} is a field of the tree, not of a row")
    return {("row_id" if name == "id" else name): json_types(value) for name, value in extra.items()}


def _status(fields: Mapping[str, Any]) -> int:
    name = fields.get("status") or "done"
    if not isinstance(name, str) or name not in STATUS_CODES:
        raise UserError(f"status is {shown(name)}; {nearest(str(name)[:60], STATUS_CODES)}")
    if name == "open":
        raise UserError("status is 'open': a row is a rollout that has ended")
    if name in UNREWARDED and fields["reward"] is not None:
        raise UserError(f"a reward beside status {name!r}")
    return STATUS_CODES[name]
