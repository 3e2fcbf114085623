"""Grown tree -> TreeRecord: what the tree file keeps of it, nodes in the order of their keys."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from treegrpo_cli.config.effects import without_effect
from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.data.tasks import row_digest
from treegrpo_cli.trees.format import spans_of
from treegrpo_cli.trees.tree_record import TreeRecord
from treegrpo_cli.types import NodeStatus, Task

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.tree import Tree


def tree_record(tree: Tree) -> TreeRecord:
    """Return the record of a finished tree: rewards at its kept leaves, no scoring yet."""
    columns = tree.forest.columns()
    order = tree.in_key_order()
    place = {node: index for index, node in enumerate(order)}
    return TreeRecord(
        prompt_id=tree.prompt.prompt_id,
        tree_id=tree.tree_id,
        nodes=[_node(tree, columns, node, place) for node in order],
        task=task_json(tree.prompt.task),
        meta=meta(tree.player.config)
        | {"number": tree.prompt.number, "row_digest": row_digest(tree.prompt.task.columns), "spent": spent(tree)},
    )


def spent(tree: Tree) -> dict[str, float]:
    """What the tree took, in the units of `[budget]`; `seconds` are those in which its chains ran."""
    return {
        "leaves": tree.num_leaves,
        "tokens": tree.generated_tokens,
        "tool_calls": tree.num_tool_calls,
        "seconds": round(tree.seconds, 3),
    }


def _node(tree: Tree, columns: dict[str, Any], node: int, place: dict[int, int]) -> dict[str, Any]:
    turn, span = tree.turns[node], slice(*map(int, columns["token_start"][node : node + 2]))
    sampled = columns["sampled"][span]
    num_sampled, leaf = int(sampled.sum()), tree.rewards.get(node)
    fields: dict[str, Any] = {
        "id": place[node],
        "parent": place.get(int(columns["parent"][node])),
        "status": turn.status.name.lower(),
        "reward": None if leaf is None else leaf.reward,
        "token_ids": columns["token_ids"][span].tolist(),
        "sampled": [[0, num_sampled]] if num_sampled else [],
        **({"tool_call_spans": spans_of(columns["tool_call"][span])} if tree.forest.knows_tool_calls else {}),
        "logprobs": columns["logprobs"][span][sampled].tolist(),
        "text": turn.text if place[node] else tree.prompt_text,
        "observation": turn.observation,
        "policy_version": int(columns["policy_version"][node]),
        "num_tool_calls": turn.num_tool_calls,
    }
    if turn.depth:
        fields["round"], fields["draw"], _ = turn.key
    if state_key := int(columns["state_key"][node]):
        fields["state_key"] = f"{state_key:016x}"
    for name in ("entropy", "confidence"):
        if not np.isnan(columns[name][node]):
            fields[name] = float(columns[name][node])
    if turn.num_failed_tool_calls:
        fields["num_failed_tool_calls"] = turn.num_failed_tool_calls
    if turn.env_reward is not None:
        fields["env_reward"] = turn.env_reward
    if turn.status is not NodeStatus.OPEN:
        fields["kept"] = leaf is not None
    if leaf is not None:
        fields["rewards"] = dict(leaf.by_function)
        if leaf.true_reward is not None:
            fields["true_reward"] = leaf.true_reward
    error = leaf.failure.reason if leaf is not None and leaf.failure else turn.error
    if error is not None:
        fields["error"] = error
    return fields


def task_json(task: Task) -> dict[str, Any]:
    """The dataset row, with question and ground truth under names that do not depend on its columns.

    What JSON does not know (a date, bytes) is written as text.
    """
    row = {**task.columns, "question": task.question, "ground_truth": task.ground_truth}
    plain: dict[str, Any] = orjson.loads(orjson.dumps(row, default=str, option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


def meta(config: Config) -> dict[str, Any]:
    """Where a tree comes from: model, sampling settings, seed, config digest and what differs from the defaults,
    time (UTC), package version.
    """
    if not (_newest and _newest[0][0] is config):
        _newest[:] = [(config, _meta_of(config))]
    return _newest[0][1] | {"time": datetime.now(UTC).isoformat(timespec="seconds")}


_newest: list[tuple[Config, dict[str, Any]]] = []
"""The last config, and what all its trees say of it: to work that out takes longer than a tree's own fields."""


def _meta_of(config: Config) -> dict[str, Any]:
    return {
        "model": config.model.path,
        "sampling": config.rollout.model_dump(mode="json"),
        "selection": config.selection.model_dump(mode="json"),
        "seed": config.seed,
        "config_digest": config_digest(config),
        "settings": relevant_settings(config),
        "version": version("treegrpo"),
    }


def config_digest(config: Config) -> str:
    """Sixteen hex digits that differ where a setting differs that a tree depends on."""
    settings = orjson.dumps(relevant_settings(config, all_of_them=True), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(settings).hexdigest()[:16]


def relevant_settings(config: Config, *, all_of_them: bool = False) -> dict[str, Any]:
    """The settings that a tree depends on, as tables: those that differ from their defaults, or all."""
    settings = config.model_dump(
        mode="json",
        include={
            **dict.fromkeys(
                ("seed", "model", "environment", "reward", "rollout", "selection", "budget", "advantage"), True
            ),
            "data": {"train", "split"},
            **({"train": {"prompts_per_step"}} if config.prompts_wait else {}),
        },
        exclude=without_effect(),
        exclude_defaults=not all_of_them,
    )
    return without_passwords(settings)
