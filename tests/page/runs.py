"""A small run's directory: two dataset rows that return in every step, learning as the steps go on."""

from __future__ import annotations

from pathlib import Path

from tests.page.hostile import Fields, write
from tests.sample_trees import nodes_of, tree

QUESTIONS = ("Which river flows through N'Djamena?", "What is the capital of Laos?")
PARENTS = [None, 0, 0, 1, 1, 2, 2]


def rewards_at(step: int, row: int) -> list[float]:
    """Rewards of the four leaves: more of them are right as the steps go on; row 1 is always all right."""
    return [1.0] * 4 if row else [1.0 if leaf < step else 0.0 for leaf in range(4)]


def prompt_at(step: int, row: int) -> list[Fields]:
    """The one tree of a row in a step; its ids are the run's own, its question the dataset's."""
    nodes = nodes_of(PARENTS, [None, None, None, *rewards_at(step, row)])
    for node in nodes[1:]:
        node |= {
            "text": f"<search> {QUESTIONS[row][:12]} {node['id']} </search>",
            "observation": f"found at step {step}",
        }
    return [tree(f"{step}-{row}", 0, nodes, task={"question": QUESTIONS[row]})]


def write_run(folder: Path, num_steps: int = 4) -> Path:
    """The directory, with a tree file for every step from 1."""
    (folder / "trees").mkdir(parents=True)
    for step in range(1, num_steps + 1):
        write(folder / "trees" / f"step-{step:06d}.jsonl", [line for row in (0, 1) for line in prompt_at(step, row)])
    return folder
