"""Tree records -> forest -> scored records, and rows for somebody's own trainer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import Forest, estimators
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.trees.forest import numbers_of, to_forest
from treegrpo_cli.trees.format import Fields, sampled_mask
from treegrpo_cli.trees.tree_record import TreeRecord

if TYPE_CHECKING:
    from treegrpo_cli._core import Scores
    from treegrpo_cli.config import AdvantageConfig

DEFAULT_ESTIMATOR = "tree-grpo"

MAX_REWARD = 1e150
"""Squares of larger ones do not fit a float64."""

Options = Mapping[str, str | float | int | bool]


class TrainingRow(TypedDict):
    """One kept leaf: the T tokens from the prompt to it."""

    input_ids: NDArray[np.int64]
    """[T] prompt, turns and observations."""
    loss_mask: NDArray[np.bool_]
    """[T] True where the policy sampled the token."""
    logprobs: NDArray[np.float32] | None
    """[T] nats, of the distribution sampled from; 0 where not sampled. None where the file has none."""
    advantages: NDArray[np.float32]
    """[T] 0 where not sampled."""
    group: str
    """The prompt_id."""


def score(trees: Iterable[TreeRecord], estimator: str = DEFAULT_ESTIMATOR, **options: Any) -> list[TreeRecord]:
    """Return scored copies of the trees, in their order; a group is the trees of one prompt_id.

    Each node gains `depth`, `num_leaves`, `value` and `advantage`, the tree `scoring`. Raises UserError
    for an unknown estimator or option, a value out of range, and two trees of one prompt_id and tree_id.

    >>> def chain(tree_id, reward):
    ...     nodes = [{"id": 0, "parent": None, "reward": None}, {"id": 1, "parent": 0, "reward": reward}]
    ...     return TreeRecord(prompt_id="q1", tree_id=tree_id, nodes=nodes)
    >>> [tree.nodes[1]["advantage"] for tree in score([chain(0, 1.0), chain(1, 0.0)], "grpo", scale="none")]
    [0.5, -0.5]
    """
    records = list(trees)
    groups: dict[str, dict[int, int]] = {}
    for place, record in enumerate(records):
        group = groups.setdefault(record.prompt_id, {})
        if record.tree_id in group:
            raise record.error(f"a second tree {record.tree_id} of prompt_id {record.prompt_id!r}")
        group[record.tree_id] = place
    for group in groups.values():
        scored = score_group([records[place] for place in group.values()], estimator, options)
        for place, record in zip(group.values(), scored, strict=True):
            records[place] = record
    return records


def score_group(records: Sequence[TreeRecord], estimator: str, options: Options) -> list[TreeRecord]:
    """Return scored copies of one prompt's trees. Raises UserError as `score` does."""
    _check_rewards(records)
    forest = to_forest(records, tokens=False)
    try:
        scores = forest.score(estimator, dict(options))
    except ValueError as error:
        raise _placed(str(error), records) from None
    if len(records) == 1 and estimator == "tree-grpo" and scores.options["variant"] == "sum":
        warnings.warn(
            "tree-grpo over a single tree of a prompt: both its terms are the same, and advantages double",
            stacklevel=2,
        )
    return _annotated(records, scores)


def keep_or_score(records: Sequence[TreeRecord]) -> list[TreeRecord]:
    """One prompt's trees with the scoring that they have, or scored by `tree-grpo` where they have none."""
    unscored = [record for record in records if record.scoring is None]
    if not unscored:
        return list(records)
    if len(unscored) < len(records):
        raise unscored[0].error(
            "has no scoring, but other trees of its prompt do: name an estimator to score them together"
        )
    return score_group(records, DEFAULT_ESTIMATOR, {})


def annotate(groups: Iterable[Sequence[TreeRecord]], advantage: AdvantageConfig) -> list[list[TreeRecord]]:
    """Score each group with the settings of a run."""
    return [score_group(group, advantage.estimator, advantage.options) for group in groups]


def training_rows(trees: Iterable[TreeRecord]) -> list[TrainingRow]:
    """Return one row a scored leaf, in the order of trees and nodes, with the advantages that the trees have.

    Under `grpo` and `tree-grpo` every sampled token of a path takes its leaf's advantage, under the other
    estimators that of its own node. Raises UserError where a tree is unscored (see `score`), or a node
    has no `token_ids` or does not say which of them were `sampled`.

    >>> root = {"id": 0, "parent": None, "reward": None, "token_ids": [5, 6]}
    >>> tokens = {"token_ids": [7, 8, 9], "sampled": [[0, 2]], "logprobs": [-0.5, -0.25]}
    >>> turn = {"id": 1, "parent": 0, "reward": 1.0} | tokens
    >>> other = turn | {"id": 2, "reward": 0.0}
    >>> tree = TreeRecord(prompt_id="q1", tree_id=0, nodes=[root, turn, other])
    >>> row = training_rows(score([tree], "parent"))[0]
    >>> row["input_ids"].tolist(), row["advantages"].tolist()
    ([5, 6, 7, 8, 9], [0.0, 0.0, 0.5, 0.5, 0.0])
    """
    return [row for record in trees for row in _rows_of_tree(record)]


def _check_rewards(records: Sequence[TreeRecord]) -> None:
    rewards = numbers_of([node for record in records for node in record.nodes], "reward")
    if not (np.abs(rewards) > MAX_REWARD).any():
        return
    for record in records:
        for node in record.nodes:
            if abs(node["reward"] or 0) > MAX_REWARD:
                raise record.error(
                    f"node {node['id']}: reward {node['reward']} is too large, expected at most {MAX_REWARD}"
                )


def _rows_of_tree(record: TreeRecord) -> Iterable[TrainingRow]:
    if record.scoring is None:
        raise record.error(f"tree {record.tree_id} of prompt_id {record.prompt_id!r} is unscored: `score` it first")
    leaf_level = _is_leaf_level(record, record.scoring["estimator"])
    columns = [_columns_of_node(record, node) for node in record.nodes]
    for leaf in record.nodes:
        if leaf["reward"] is None:
            continue
        path = _path(record.nodes, leaf)
        token_ids, masks, logprobs = zip(*(columns[node["id"]] for node in path), strict=True)
        shares = [
            mask * np.float32((leaf if leaf_level else node)["advantage"])
            for mask, node in zip(masks, path, strict=True)
        ]
        yield TrainingRow(
            input_ids=np.concatenate(token_ids),
            loss_mask=np.concatenate(masks),
            logprobs=None if any(column is None for column in logprobs) else np.concatenate(logprobs),
            advantages=np.concatenate(shares).astype(np.float32),
            group=record.prompt_id,
        )


def _is_leaf_level(record: TreeRecord, estimator: str) -> bool:
    """Whether a path's tokens take the advantage of its leaf, not of their own node."""
    if estimator not in estimators():
        raise record.error(f"scoring.estimator: unknown {estimator!r}, {nearest(estimator, estimators())}")
    return bool(Forest().score(estimator, {}).leaf_level)


def _columns_of_node(
    record: TreeRecord, node: Fields
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32] | None]:
    for name in ("token_ids", "sampled"):
        if node.get(name) is None and (name == "token_ids" or node["id"] > 0):
            raise record.error(f"node {node['id']} has no {name!r}: there is nothing to train on")
    mask = np.array(sampled_mask(node), dtype=np.bool_)
    logprobs = np.zeros(len(mask), dtype=np.float32) if node.get("logprobs") is not None or not mask.any() else None
    if logprobs is not None and mask.any():
        logprobs[mask] = node["logprobs"]
    return np.array(node["token_ids"], dtype=np.int64), mask, logprobs


def _path(nodes: Sequence[Fields], leaf: Fields) -> list[Fields]:
    path = [leaf]
    while path[-1]["parent"] is not None:
        path.append(nodes[path[-1]["parent"]])
    return path[::-1]


def _annotated(records: Sequence[TreeRecord], scores: Scores) -> list[TreeRecord]:
    columns = scores.depth.tolist(), scores.num_leaves.tolist(), _or_none(scores.value), _or_none(scores.advantage)
    added = zip(*columns, strict=True)
    scoring = {"estimator": scores.estimator, "options": scores.options}
    return [
        record.replaced(
            nodes=[
                {**node, "depth": depth, "num_leaves": num_leaves, "value": value, "advantage": advantage}
                for node, (depth, num_leaves, value, advantage) in zip(record.nodes, added, strict=False)
            ],
            scoring=scoring,
        )
        for record in records
    ]


def _or_none(column: NDArray[np.float64]) -> list[float | None]:
    values = column.tolist()
    return [None if value != value else value for value in values] if np.isnan(column).any() else values


def _placed(message: str, records: Sequence[TreeRecord]) -> UserError:
    """The core's message, its forest-wide ids turned into file, line and the tree's own."""
    found = re.match(r"tree (\d+), node (\d+): (.*)", message)
    if found is None:
        return UserError(message)
    tree, node = int(found[1]), int(found[2])
    first = sum(len(record.nodes) for record in records[:tree])
    return records[tree].error(f"tree {records[tree].tree_id}, node {node - first}: {found[3]}")
