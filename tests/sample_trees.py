"""Small tree records and files that the tests of reading, scoring and drawing share."""

import json
from pathlib import Path
from typing import Any

Fields = dict[str, Any]

# The first tree of the published test vectors: root -> A, B, C; A -> A1, A2; B -> B1 -> B1a, B1b, B1c.
VECTOR_PARENTS = [None, 0, 0, 0, 1, 1, 2, 6, 6, 6]
VECTOR_REWARDS = [None, None, None, 0.0, 1.0, 0.0, None, 1.0, 1.0, 0.0]
VECTOR_NAMES = ["r", "A", "B", "C", "A1", "A2", "B1", "B1a", "B1b", "B1c"]


def nodes_of(parents: list[int | None], rewards: list[float | None]) -> list[Fields]:
    """The least that nodes need."""
    return [
        {"id": place, "parent": parent, "reward": reward}
        for place, (parent, reward) in enumerate(zip(parents, rewards, strict=True))
    ]


def tree(prompt_id: str = "q", tree_id: int = 0, nodes: list[Fields] | None = None, **fields: Any) -> Fields:
    """A legal line: by default a root and two leaves with rewards 1 and 0."""
    nodes = nodes_of([None, 0, 0], [None, 1.0, 0.0]) if nodes is None else nodes
    return {"schema": "treegrpo.tree/1", "prompt_id": prompt_id, "tree_id": tree_id, "nodes": nodes, **fields}


def vector_trees() -> list[Fields]:
    """The two trees of the published test vectors: the second is root -> D (0), E (1)."""
    first = tree("vectors", 0, nodes_of(VECTOR_PARENTS, VECTOR_REWARDS))
    return [first, tree("vectors", 1, nodes_of([None, 0, 0], [None, 0.0, 1.0]))]


def full_tree() -> Fields:
    """A line with every field of the format, and some that nobody knows, in unusual places."""
    root = {"id": 0, "parent": None, "reward": None, "token_ids": [5, 6, 7], "text": "Which capital?"}
    search = {
        "mystery": {"deep": [1, {"er": None}]},
        "id": 1,
        "parent": 0,
        "status": "open",
        "reward": None,
        "token_ids": [10, 11, 12, 4294967295],
        "sampled": [[0, 1], [2, 3]],
        "logprobs": [-0.1, -2.5e-8],
        "text": "<search>capital of Chad</search>",
        "observation": "Doc 1(Title: Chad) N'Djamena",
        "policy_version": 3,
        "entropy": 0.25,
        "confidence": -0.5,
    }
    answer = {
        "id": 2,
        "parent": 1,
        "status": "done",
        "reward": 0.30000000000000004,
        "token_ids": [20, 21],
        "sampled": [[0, 2]],
        "logprobs": [-0.3, -1],
        "text": "<answer>N'Djamena</answer>",
        "kept": True,
        "policy_version": 3,
        "zeta": -0.0,
    }
    dropped = {"id": 3, "parent": 1, "status": "truncated_turns", "reward": None, "kept": False}
    failed = {"id": 4, "parent": 0, "status": "error", "reward": None, "error": "retriever: no answer"}
    task = {
        "question": "Which capital? äöü 首都",
        "ground_truth": ["N'Djamena"],
        "extra": 18446744073709551615,
    }
    return {
        "before": [],
        "schema": "treegrpo.tree/1",
        "prompt_id": "geo-1",
        "tree_id": 0,
        "task": task,
        "nodes": [root, search, answer, dropped, failed],
        "meta": {"model": "tiny", "seed": 7},
        "after": {"x": 1e-300},
    }


def write_lines(path: Path, trees: list[Fields]) -> Path:
    """Write one line a tree, as somebody's own script would."""
    path.write_text("".join(json.dumps(fields) + "\n" for fields in trees))
    return path
