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
    import numpy as np
    from numpy.typing import NDArray

    from treegrpo_cli.rollout.tree import Tree

MAX_SHOWN = 2000
"""Characters of a text that a terminal shows; loggers and tree files have all of it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A root-to-leaf path: its texts, the weighted sum of its rewards and what each function gave (None: unscored).

    `advantage` is the leaf's own; turns above it have theirs.
    """

    prompt: str
    completion: str
    reward: float | None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    advantage: float | None = None


def draw_samples(
    trees: Sequence[Tree], count: int, key: Sequence[int], advantages: NDArray[np.float64]
) -> list[Sample]:
    """Return `count` kept leaves of `trees`, or all where there are fewer, drawn by `key` whoever was grown first.

    `advantages` has one a node of the forest that `join` makes of the trees: tree by tree, in the order of keys.
    """
    if not count:
        return []
    leaves, first = [], 0
    for tree in trees:
        place = {node: first + index for index, node in enumerate(tree.in_key_order())}
        leaves += [(tree, leaf, float(advantages[place[leaf]])) for leaf in tree.rewards]
        first += len(place)
    drawn = random.Random(derive_seed(key)).sample(range(len(leaves)), min(count, len(leaves)))  # noqa: S311
    return [_sample(*leaves[position]) for position in sorted(drawn)]


def _sample(tree: Tree, leaf: int, advantage: float) -> Sample:
    rollout, worth = tree.rollout(leaf), tree.rewards[leaf]
    known = None if worth.reward is None else advantage
    return Sample(rollout.prompt, rollout.completion, worth.reward, worth.by_function, known)


def table_of(samples: Sequence[Sample]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows: prompt, completion, the functions' rewards, their sum beside several, the advantage."""
    names = list(samples[0].rewards) if samples else []
    summed = len(names) != 1
    columns = ["prompt", "completion", *names, *(["reward"] if summed else []), "advantage"]
    rows = [
        [s.prompt, s.completion, *s.rewards.values(), *([s.reward] if summed else []), s.advantage] for s in samples
    ]
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
