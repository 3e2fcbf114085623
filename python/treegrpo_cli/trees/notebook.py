"""A tree, trees, a forest, scores -> HTML for a notebook: the first rows, and how to see the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from shlex import quote

import numpy as np

from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.trees.branches import Branches
from treegrpo_cli.trees.forest_tables import leaf_rows, sizes_of
from treegrpo_cli.trees.format import Fields, status_of
from treegrpo_cli.trees.markup import chip, details, passage, table, text
from treegrpo_cli.trees.terms import label_of
from treegrpo_cli.trees.texts import count, number
from treegrpo_cli.trees.tree_record import TreeRecord

MAX_ROWS = 200
MAX_LEAD = 24
"""Characters of the lines in front of a node; the tree of a deeper one is cut on the left."""


def html_of(shown: TreeRecord | Sequence[TreeRecord] | Forest | Scores) -> str:
    """Return a drawing of a tree, or a table: of trees, of a forest by tree, of scores by node."""
    if isinstance(shown, TreeRecord):
        return _tree(shown)
    if isinstance(shown, Forest):
        return _forest(shown)
    return _scores(shown) if isinstance(shown, Scores) else _trees(shown)


def _tree(record: TreeRecord) -> str:
    nodes, branches = record.nodes, Branches(record.nodes)
    scored = record.scoring is not None
    largest = max((abs(node.get("advantage") or 0.0) for node in nodes), default=0.0) or 1.0
    rows = (
        [_lead(lead, node), *(_scored(nodes[node], largest) if scored else ()), *_turn(nodes[node], branches, node)]
        for node, lead in islice(_walk(branches), MAX_ROWS)
    )
    headers = ["node:", *(("value", "advantage", "leaves") if scored else ()), "reward", "status:", "turn:"]
    return table([_strong(_title(record)), *_question(record)], headers, rows, _more(record))


def _walk(branches: Branches) -> Iterator[tuple[int, str]]:
    """Nodes depth first, each with the lines in front of it."""
    stack = [(0, "", "")]
    while stack:
        node, lead, rest = stack.pop()
        yield node, lead
        below = branches.children(node)
        rest = rest if len(rest) <= MAX_LEAD else f"…{rest[-MAX_LEAD + 4 :]}"
        for child in reversed(below):
            last = child == below[-1]
            stack.append((child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")))


def _lead(lead: str, node: int) -> str:
    return f'<span style="white-space:pre; font-family:monospace">{lead}{node}</span>'


def _scored(node: Fields, largest: float) -> tuple[str, str, str]:
    return number(node.get("value")), chip(node.get("advantage"), largest), str(node.get("num_leaves", "·"))


def _turn(node: Fields, branches: Branches, place: int) -> tuple[str, str, str]:
    is_inner = branches.is_inner(place)
    whole, words = node.get("text") or "", ("prompt " if place == 0 else "")
    below = [passage(whole)] if whole else []
    below += [passage(f"→ {node['observation']}")] if node.get("observation") else []
    below += [passage(f"! {node['error']}")] if node.get("error") else []
    kept = " (not kept)" if node.get("kept") is False else ""
    label = words + text(whole) if whole else words + count(len(node.get("token_ids") or ()), "token")
    reward = "" if is_inner or place == 0 else number(node["reward"])
    return reward, text(status_of(node, is_inner)) + kept, details(label, below)


def _title(record: TreeRecord) -> str:
    rewards = [node["reward"] for node in record.nodes if node["reward"] is not None]
    num_leaves = len(record.nodes) - len({node["parent"] for node in record.nodes[1:]})
    facts = [
        f"{text(record.prompt_id)} · tree {record.tree_id}",
        *((text(label_of(record.scoring)),) if record.scoring else ()),
        count(len(record.nodes), "node"),
        f"{count(num_leaves, 'leaf', 'leaves')}, {len(rewards):,} scored",
        *((f"mean reward {number(sum(rewards) / len(rewards))}",) if rewards else ()),
    ]
    return " · ".join(facts)


def _question(record: TreeRecord) -> list[str]:
    question = (record.task or {}).get("question")
    return [f"<em>{text(question, 400)}</em>"] if isinstance(question, str) else []


def _more(record: TreeRecord) -> list[str]:
    if (left := len(record.nodes) - MAX_ROWS) <= 0:
        return []
    path = quote(str(record.path)) if record.path is not None else "FILE"
    command = f"treegrpo inspect-tree {path} --prompt-id {quote(record.prompt_id)} --html page.html"
    return [f"{left:,} more: <code>{text(command, 400)}</code> draws all"]


def _trees(records: Sequence[TreeRecord]) -> str:
    prompts = len({record.prompt_id for record in records})
    title = f"{count(len(records), 'tree')} of {count(prompts, 'prompt')}"
    headers = ["", "prompt_id:", "tree_id", "nodes", "leaves", "scored", "mean reward", "estimator:", "question:"]
    rows = ([str(place), *_summary(record)] for place, record in enumerate(records[:MAX_ROWS]))
    return table([_strong(title)], headers, rows, _left(len(records)))


def _summary(record: TreeRecord) -> list[str]:
    rewards = [node["reward"] for node in record.nodes if node["reward"] is not None]
    num_leaves = len(record.nodes) - len({node["parent"] for node in record.nodes[1:]})
    mean = number(sum(rewards) / len(rewards)) if rewards else number(None)
    question = (record.task or {}).get("question")
    sizes = [f"{size:,}" for size in (len(record.nodes), num_leaves, len(rewards))]
    estimator = text(label_of(record.scoring)) if record.scoring else "·"
    return [text(record.prompt_id), str(record.tree_id), *sizes, mean, estimator, text(question or "")]


def _forest(forest: Forest) -> str:
    shot = forest.snapshot()
    columns, num_trees = shot.columns(), shot.num_trees
    tree, reward, is_scored = columns["tree"], columns["reward"], ~np.isnan(columns["reward"])
    scored = np.bincount(tree[is_scored], minlength=num_trees)
    total = np.bincount(tree[is_scored], reward[is_scored], num_trees)
    counts = {
        "nodes": np.bincount(tree, minlength=num_trees),
        "leaves": np.bincount(tree[leaf_rows(columns)], minlength=num_trees),
        "scored": scored,
        "tokens": np.bincount(tree, sizes_of(columns)["num_tokens"], num_trees).astype(np.int64),
    }
    means = [number(summed / many if many else None) for summed, many in zip(total, scored.tolist(), strict=True)]
    rows = (
        [str(place), str(columns["prompt"][place]), *(f"{column[place]:,}" for column in counts.values()), means[place]]
        for place in range(min(num_trees, MAX_ROWS))
    )
    return table([_strong(text(repr(shot)))], ["tree_id", "prompt_id", *counts, "mean reward"], rows, _left(num_trees))


def _scores(scores: Scores) -> str:
    num_nodes, advantage = len(scores.advantage), scores.advantage[:MAX_ROWS].tolist()
    largest = float(np.nanmax(np.abs(scores.advantage), initial=0.0)) or 1.0
    columns = (
        scores.depth[:MAX_ROWS].tolist(),
        scores.num_leaves[:MAX_ROWS].tolist(),
        scores.value[:MAX_ROWS].tolist(),
    )
    rows = (
        [str(node), str(depth), str(leaves), number(_or_none(value)), chip(_or_none(advantage[node]), largest)]
        for node, (depth, leaves, value) in enumerate(zip(*columns, strict=True))
    )
    title = f"{text(scores.estimator)} · {count(num_nodes, 'node')}"
    return table([_strong(title)], ["node_id", "depth", "leaves", "value", "advantage"], rows, _left(num_nodes))


def _strong(title: str) -> str:
    return f"<strong>{title}</strong>"


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _left(total: int) -> list[str]:
    return [f"{total - MAX_ROWS:,} more: <code>to_pandas()</code> has all"] if total > MAX_ROWS else []
