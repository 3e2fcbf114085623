"""Groups of trees -> the columns that a page holds: an index of all nodes, and texts and tokens tree by tree.

The index is read when the page opens: what a row of the drawing needs. A tree's texts and tokens are read when one of
its nodes is looked at. The head of `static/data.js` has the names and types.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli import __version__
from treegrpo_cli.page.embed import packed
from treegrpo_cli.page.groups import SCORE_COLUMNS, Group, Scored
from treegrpo_cli.trees.branches import parents_of
from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.estimators import estimators
from treegrpo_cli.trees.forest import mask_of, numbers_of
from treegrpo_cli.trees.format import NODE_TYPES, STATUS_CODES, Fields, inner_nodes, sampled_mask, status_of
from treegrpo_cli.trees.tree_record import TreeRecord

EXCERPT = 240
"""Characters of a turn that stand in its row: half from its start, half from its end, where the action is."""
NUMBERS = ("reward", "true_reward", "env_reward", "entropy", "confidence")
COUNTS = ("depth", "num_leaves", "policy_version", "round", "draw", "num_tool_calls", "num_failed_tool_calls")
KNOWN = {"id", "parent", *NODE_TYPES, *NUMBERS, *COUNTS, "rewards"}
STATUSES = tuple(STATUS_CODES)


def index(groups: Sequence[Group], title: str, vocabulary_of: Callable[[TreeRecord], int]) -> dict[str, Any]:
    """What the page reads first: prompts, trees, and the columns of all nodes."""
    records = [record for group in groups for record in group.records]
    nodes = [node for record in records for node in record.nodes]
    return {
        "version": __version__,
        "title": title,
        "prompts": _prompts(groups),
        "trees": _trees(groups, records, vocabulary_of),
        "nodes": _nodes(records, nodes),
        **_scorings(groups),
    }


def tree_block(record: TreeRecord) -> dict[str, Any]:
    """Texts and tokens of one tree."""
    nodes = record.nodes
    return {
        **{name: [_text(node.get(name)) for node in nodes] for name in ("text", "observation", "error")},
        "rewards": [_pairs(node.get("rewards")) for node in nodes],
        "other": [_pairs({name: node[name] for name in node if name not in KNOWN}) for node in nodes],
        "kept": [node.get("kept") for node in nodes],
        "state_key": [node.get("state_key") for node in nodes],
        **_tokens(nodes),
    }


def _prompts(groups: Sequence[Group]) -> dict[str, Any]:
    tasks = [group.records[0].task or {} for group in groups]
    written = [json.dumps(task, ensure_ascii=False, indent=2) for task in tasks]
    first: dict[str, int] = {}
    return {
        "id": [group.records[0].prompt_id for group in groups],
        "step": [group.step for group in groups],
        "question": [_text(task.get("question")) for task in tasks],
        "task": [text if task else "" for text, task in zip(written, tasks, strict=True)],
        "same": [
            first.setdefault(text, place) if task else place
            for place, (text, task) in enumerate(zip(written, tasks, strict=True))
        ],
    }


def _trees(
    groups: Sequence[Group], records: Sequence[TreeRecord], vocabulary_of: Callable[[TreeRecord], int]
) -> dict[str, Any]:
    files, metas = dict[str, int](), dict[str, int]()
    return {
        "prompt": [place for place, group in enumerate(groups) for _ in group.records],
        "tree_id": [record.tree_id for record in records],
        "start": [0, *accumulate(len(record.nodes) for record in records)],
        "file": [files.setdefault(str(record.path or ""), len(files)) for record in records],
        "line": [record.line for record in records],
        "meta": [metas.setdefault(_written(record.meta), len(metas)) for record in records],
        "vocabulary": [vocabulary_of(record) for record in records],
        "files": list(files),
        "metas": list(metas),
    }


def _nodes(records: Sequence[TreeRecord], nodes: Sequence[Fields]) -> dict[str, Any]:
    token_ids = [tokens or () for tokens in column_of(nodes, "token_ids")]
    return {
        "parent": packed(np.concatenate([parents_of(record.nodes) for record in records]), np.int32),
        "status": packed([code for record in records for code in _statuses(record.nodes)], np.uint8),
        "statuses": STATUSES,
        "num_tokens": packed([len(tokens) for tokens in token_ids], np.int32),
        "num_sampled": packed([sum(sampled_mask(node)) for node in nodes], np.int32),
        **{name: packed(numbers_of(nodes, name), np.float64) for name in NUMBERS},
        **{name: packed(_counts(nodes, name), np.int32) for name in COUNTS},
        "excerpt": [_excerpt(node) for node in nodes],
    }


def _scorings(groups: Sequence[Group]) -> dict[str, Any]:
    known = estimators()
    refused = {name: group.refused[name] for name in known for group in reversed(groups) if name in group.refused}
    scorings = [_scoring([group.shown for group in groups], None)]
    scorings += [_scoring([group.others[name] for group in groups], name) for name in known if name not in refused]
    return {"scorings": scorings, "refused": [{"name": name, "reason": reason} for name, reason in refused.items()]}


def _scoring(parts: Sequence[Scored], name: str | None) -> dict[str, Any]:
    labels = list(dict.fromkeys(part.label for part in parts))
    about = estimators().get(name or labels[0])
    sizes = [len(part.columns["value"]) for part in parts]
    columns = {
        column: packed(
            np.concatenate(
                [part.columns.get(column, np.full(size, np.nan)) for part, size in zip(parts, sizes, strict=True)]
            ),
            np.float64,
        )
        for column in SCORE_COLUMNS
        if any(column in part.columns for part in parts)
    }
    return {
        "name": name,
        "label": labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more",
        "summary": about["summary"] if about else "",
        "formula": about["formula"] if about else "",
        "options": _written(parts[0].scoring),
        "columns": columns,
    }


def _statuses(nodes: Sequence[Fields]) -> Iterator[int]:
    inner = inner_nodes(nodes)
    return (STATUSES.index(status_of(node, node["id"] in inner)) for node in nodes)


def _counts(nodes: Sequence[Fields], name: str) -> list[int]:
    """A count of all nodes, -1 where there is none, or none that fits."""
    return [value if type(value) is int and 0 <= value < 2**31 else -1 for value in column_of(nodes, name)]


def _excerpt(node: Fields) -> str:
    text = _text(node.get("text"))
    if len(text) > EXCERPT:
        text = f"{text[: EXCERPT // 2]} … {text[-EXCERPT // 2 :]}"
    return " ".join(text.split())


def _tokens(nodes: Sequence[Fields]) -> dict[str, Any]:
    """Token columns, empty of nodes that have none; a logprob is NaN where none is known."""
    token_ids = [tokens or () for tokens in column_of(nodes, "token_ids")]
    start = np.array([0, *accumulate(map(len, token_ids))], dtype=np.int64)
    sampled = mask_of(column_of(nodes, "sampled"), start)
    logprobs = np.full(len(sampled), np.nan, dtype=np.float32)
    for first, node in zip(start.tolist(), nodes, strict=False):
        places = [first + place for start_, end in node.get("sampled") or () for place in range(start_, end)]
        if given := node.get("logprobs"):
            logprobs[places] = given
    return {
        "token_start": packed(start, np.int32),
        "token_ids": packed(list(chain.from_iterable(token_ids)), np.uint32),
        "flags": packed(sampled + 2 * _tool_calls(nodes, start), np.uint8),
        "logprobs": packed(logprobs, np.float32),
    }


def _tool_calls(nodes: Sequence[Fields], start: NDArray[np.int64]) -> NDArray[np.uint8]:
    return mask_of(column_of(nodes, "tool_call_spans"), start).astype(np.uint8)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else _written(value)


def _written(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=1)


def _pairs(fields: Any) -> list[list[str]] | None:
    """Names and values of an object as texts: a name may be any, `__proto__` included."""
    if not isinstance(fields, dict) or not fields:
        return None
    return [[name, json.dumps(value, ensure_ascii=False)] for name, value in fields.items()]
