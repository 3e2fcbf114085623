"""Trees of a step -> some of their completions with rewards, as a table to read and to log."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from treegrpo_cli._core import derive_seed

if TYPE_CHECKING:
    from treegrpo_cli.rollout.tree import Tree

MAX_SHOWN = 2000
"""Characters of a text that a terminal shows; loggers and tree files have all of it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A root-to-leaf path: its texts, what each reward function gave, and their weighted sum (None: unscored)."""

    prompt: str
    completion: str
    reward: float | None
    rewards: Mapping[str, float | None] = field(default_factory=dict)


def draw_samples(trees: Sequence[Tree], count: int, key: Sequence[int]) -> list[Sample]:
    """Return `count` kept leaves of `trees`, or all where there are fewer, drawn by `key` whoever was grown first."""
    leaves = [(tree, leaf) for tree in trees for leaf in tree.rewards]
    drawn = random.Random(derive_seed(key)).sample(range(len(leaves)), min(count, len(leaves)))  # noqa: S311
    return [_sample(*leaves[position]) for position in sorted(drawn)]


def _sample(tree: Tree, leaf: int) -> Sample:
    rollout, worth = tree.rollout(leaf), tree.rewards[leaf]
    return Sample(rollout.prompt, rollout.completion, worth.reward, worth.by_function)


def table_of(samples: Sequence[Sample]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows: prompt, completion, the functions' rewards, and their sum where there are several."""
    names = list(samples[0].rewards) if samples else []
    columns = ["prompt", "completion", *names, *(["reward"] if len(names) != 1 else [])]
    rows = [[s.prompt, s.completion, *s.rewards.values(), *([s.reward] if len(names) != 1 else [])] for s in samples]
    return columns, rows


def draw_table(samples: Sequence[Sample], step: int) -> Table:
    """Return the table for a terminal."""
    columns, rows = table_of(samples)
    table = Table(title=f"step {step}", title_justify="left", show_lines=True, expand=True)
    for name in columns:
        is_text = name in columns[:2]
        table.add_column(name, overflow="fold", ratio=1 if is_text else None, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(value: Any) -> Text:
    """Texts as they are, without control characters; numbers to three places; what is unscored as a dash."""
    if value is None:
        return Text("–")
    if isinstance(value, float):
        return Text(f"{value:.3f}")
    text = str(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}…"
    return Text("".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text))
