"""Scored trees -> rows for somebody's own trainer, one a scored leaf; rows -> a padded batch for torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import CoreError
from treegrpo_cli.errors import UserError
from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.forest import numbers_of, to_forest
from treegrpo_cli.trees.format import NODE_TYPES, Fields
from treegrpo_cli.trees.terms import UNMASKED, is_masked, levels_of, terms_of
from treegrpo_cli.trees.tree_record import AnyTree, TreeRecord, as_records

if TYPE_CHECKING:
    import torch

    from treegrpo_cli._core import ChainRows, Forest, Scores

OWN_FIELDS = {"id", "parent", "reward", *NODE_TYPES}


class TrainingRow(TypedDict):
    """One scored leaf: the T tokens from the prompt to it."""

    input_ids: NDArray[np.int64]
    """[T] prompt, turns and observations."""
    loss_mask: NDArray[np.bool_]
    """[T] True where the policy sampled the token."""
    logprobs: NDArray[np.float32] | None
    """[T] nats, of the distribution sampled from; 0 where not sampled. None where the tree has none."""
    advantages: NDArray[np.float32]
    """[T] 0 where not sampled."""
    weights: NDArray[np.float32]
    """[T] what the token counts in this row: 1, unless the estimator weighs turns itself."""
    group: str
    """The prompt_id."""
    tree_id: int
    leaf_id: int
    """The leaf's id in its tree."""
    node_ids: NDArray[np.int64]
    """[T] the id of each token's node in its tree."""
    reward: float
    extra: Fields
    """The leaf's fields that the format does not know."""


def training_rows(trees: AnyTree | Iterable[AnyTree]) -> list[TrainingRow]:
    """Return one row a scored leaf, in the order of trees and nodes, with the advantages that the trees have.

    Under a leaf-level estimator (`grpo`, `tree-grpo`, `ancestor`) every sampled token of a path takes its leaf's
    advantage, under the other estimators that of its own node, and under a sum of both the sum; masked terms are in
    those of tool calls alone. Raises UserError where a tree is unscored (see `score`), or a node has no
    `token_ids` or does not say which of them were `sampled`.

    >>> from treegrpo_cli import TreeRecord, score
    >>> root = {"id": 0, "parent": None, "reward": None, "token_ids": [5, 6]}
    >>> tokens = {"token_ids": [7, 8, 9], "sampled": [[0, 2]], "logprobs": [-0.5, -0.25]}
    >>> turn = {"id": 1, "parent": 0, "reward": 1.0} | tokens
    >>> other = turn | {"id": 2, "reward": 0.0}
    >>> tree = TreeRecord(prompt_id="q1", tree_id=0, nodes=[root, turn, other])
    >>> row = training_rows(score([tree], "parent"))[0]
    >>> row["input_ids"].tolist(), row["advantages"].tolist(), row["node_ids"].tolist()
    ([5, 6, 7, 8, 9], [0.0, 0.0, 0.5, 0.5, 0.0], [0, 0, 1, 1, 1])
    """
    return [row for record in as_records(trees) for row in _rows_of_tree(record)]


def collate(rows: Sequence[TrainingRow], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Return the rows as tensors [B, T], padded on the right to the longest; needs torch.

    `input_ids` int64, `pad_id` where there is no token · `attention_mask` int64, 1 on tokens · `loss_mask` bool ·
    `advantages` float32 · `logprobs` float32, missing where a row has none. Raises UserError without rows.

    >>> from treegrpo_cli import from_chains, score
    >>> chains = [{"prompt_ids": [5], "completion_ids": [n] * n, "reward": n} for n in (1, 2)]
    >>> batch = collate(training_rows(score(from_chains(chains), "grpo")))
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    ([[5, 1, 0], [5, 2, 2]], [[1, 1, 0], [1, 1, 1]])
    """
    try:
        import torch
    except ImportError:
        raise UserError("collate needs torch: pip install 'treegrpo[train]'") from None
    if not rows:
        raise UserError("collate: no rows")
    names = ["input_ids", "loss_mask", "advantages"]
    names += ["logprobs"] if all(row["logprobs"] is not None for row in rows) else []
    columns: dict[str, list[Any]] = {name: [dict(row)[name] for row in rows] for name in names}
    columns["attention_mask"] = [np.ones(len(row["input_ids"]), dtype=np.int64) for row in rows]
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_id}
    return {name: torch.from_numpy(_padded(column, width, fill.get(name, 0))) for name, column in columns.items()}


def _padded(arrays: Sequence[NDArray[Any]], width: int, fill: int) -> NDArray[Any]:
    batch = np.full((len(arrays), width), fill, dtype=arrays[0].dtype)
    for place, array in enumerate(arrays):
        batch[place, : len(array)] = array
    return batch


def _rows_of_tree(record: TreeRecord) -> Iterator[TrainingRow]:
    if record.scoring is None:
        raise record.error(f"tree {record.tree_id} of prompt_id {record.prompt_id!r} is unscored: `score` it first")
    _check_tokens(record)
    forest = to_forest([record])
    rows = forest.chain_rows(_scores_of(record, forest))
    lacks = _lacks_logprobs(record, forest)
    for place, (start, end) in enumerate(pairwise(rows.row_start.tolist())):
        yield _row(record, rows, place, slice(start, end), lacks)


def _row(record: TreeRecord, rows: ChainRows, place: int, span: slice, lacks: NDArray[np.bool_]) -> TrainingRow:
    leaf = record.nodes[int(rows.leaf[place])]
    mask, node_ids = rows.loss_mask[span], rows.node_ids[span].astype(np.int64)
    return TrainingRow(
        input_ids=rows.input_ids[span].astype(np.int64),
        loss_mask=mask,
        logprobs=None if lacks[node_ids].any() else rows.logprobs[span],
        advantages=np.where(mask, rows.advantages[span], np.float32(0)),
        weights=rows.weights[span],
        group=record.prompt_id,
        tree_id=record.tree_id,
        leaf_id=leaf["id"],
        node_ids=node_ids,
        reward=float(rows.reward[place]),
        extra={name: value for name, value in leaf.items() if name not in OWN_FIELDS},
    )


def _scores_of(record: TreeRecord, forest: Forest) -> Scores:
    """The advantages that stand in the tree."""
    scoring = record.scoring or {}
    terms = terms_of(scoring)
    columns, unmasked = _levels(record, terms), None
    if is_masked(scoring):
        rest = _levels(record, [term for term in terms if "mask" not in term], UNMASKED)
        unmasked = (rest.get("leaf"), rest.get("node"))
    weight = numbers_of(record.nodes, "weight") if "weight" in record.nodes[0] else None
    advantage, beside = columns.get("leaf"), columns.get("node")
    is_leaf_level = advantage is not None
    if advantage is None:
        advantage, beside = columns["node"], None
    try:
        return forest.given_scores(advantage, leaf_level=is_leaf_level, beside=beside, weight=weight, unmasked=unmasked)
    except CoreError as error:
        where = "" if error.node is None else f"node {error.node}: "
        raise record.error(f"{where}{error.reason}") from None


def _levels(record: TreeRecord, terms: Sequence[Fields], prefix: str = "") -> dict[str, NDArray[np.float64]]:
    """Level -> the advantages of these terms in the tree."""
    try:
        levels = levels_of(terms)
    except UserError as error:
        raise record.error(str(error)) from None
    names = {"leaf": "leaf_advantage", "node": "node_advantage"} if len(levels) > 1 else {}
    return {level: numbers_of(record.nodes, prefix + names.get(level, "advantage")) for level in levels}


def _check_tokens(record: TreeRecord) -> None:
    for name, nodes in (("token_ids", record.nodes), ("sampled", record.nodes[1:])):
        column = column_of(nodes, name)
        if None in column:
            node = nodes[column.index(None)]["id"]
            raise record.error(f"node {node} has no {name!r}: there is nothing to train on")


def _lacks_logprobs(record: TreeRecord, forest: Forest) -> NDArray[np.bool_]:
    """Which nodes hold sampled tokens whose log-probabilities nobody wrote down, [N]."""
    unknown = np.array([logprobs is None for logprobs in column_of(record.nodes, "logprobs")])
    return unknown & (forest.gen_tokens() > 0)
