"""A plain row of tokens -> Chain: what somebody else's rollout holds, as columns, checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.trees.format import MAX_U32, STATUS_CODES, UNREWARDED, Fields, shown
from treegrpo_cli.trees.tree_record import json_types

TREES_OWN = {
    "parent",
    "token_ids",
    "sampled",
    "tool_call_spans",
    "state_key",
    "depth",
    "num_leaves",
    "value",
    "advantage",
}
ROW_FIELDS = (
    {"prompt_id", "group", "tree_id", "input_ids", "prompt_ids", "completion_ids", "attention_mask", "loss_mask"}
    | {"logprobs", "reward", "status", "policy_version", "task", "extra"}
    | {"advantages", "weights", "leaf_id", "node_ids"}  # of a training row, made anew
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


def read_chain(row: int, fields: Mapping[str, Any]) -> Chain:
    """Take a row as `from_chains` describes it. Raises UserError that names the row."""
    if not isinstance(fields, Mapping):
        raise UserError(f"row {row} is {shown(fields)}, expected a dict")
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
    except (TypeError, ValueError, OverflowError):
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
    if type(given) not in (int, float, bool) or not abs(given) <= sys.float_info.max:
        raise UserError(f"reward is {shown(given)}, expected a finite number")
    return float(given)


def _extra(fields: Mapping[str, Any]) -> Fields:
    for name in ("extra", "task"):
        if not isinstance(fields.get(name) or {}, Mapping):
            raise UserError(f"{name} is {shown(fields[name])}, expected a dict")
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
        raise UserError(f"status {name!r} cannot have a reward")
    return STATUS_CODES[name]
