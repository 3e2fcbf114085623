"""Summary -> lines for a terminal: counts, where siblings are told apart, and the signal by depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import set_cell_size
from rich.text import Text

from treegrpo_cli.trees.comparisons import first_of
from treegrpo_cli.trees.summary import MAX_LEVELS, Level, Summary, shares_of
from treegrpo_cli.trees.texts import count, folded, number, shorten

GAP = "  "


class Column(NamedTuple):
    """Cells below a header, `size` wide; on a narrow screen columns go in the order of `leaves`, 0 never."""

    header: str
    size: int
    leaves: int = 0


SIBLINGS = (
    Column("siblings part at", 19),
    Column("comparisons", 11, 3),
    Column("differ", 8),
    Column("mean gap", 8, 1),
    Column("share of |advantage|", 20, 2),
)
DEPTHS = (
    Column("depth", 5),
    Column("nodes", 8, 1),
    Column("comparisons", 13, 3),
    Column("differ", 8, 4),
    Column("reward", 7, 2),
    Column("advantage", 9, 5),
    Column("|advantage|", 11),
)


def lines_of_summary(summary: Summary, width: int = 80) -> Iterator[Text]:
    """Yield the summary's lines, none wider than `width` cells."""
    for parts in _counts(summary):
        for line in folded(parts, width):
            yield Text(line)
    yield Text("")
    yield from _table(SIBLINGS, _sibling_rows(summary), width, left=True)
    yield Text("")
    yield from _table(DEPTHS, map(_depth_row, range(len(summary.levels)), summary.levels), width)


def _counts(summary: Summary) -> Iterator[list[str]]:
    prompts = f"{count(summary.num_prompts, 'prompt')} ({summary.num_dead_prompts:,} with equal rewards)"
    yield [prompts, count(summary.num_trees, "tree"), count(summary.num_nodes, "node")]
    if summary.num_discarded_trees:
        trees = count(summary.num_discarded_trees, "tree")
        prompts = count(summary.num_discarded_prompts, "prompt")
        yield [f"discarded, not trained on and left out here: {trees} of {prompts}"]
    leaves = ", ".join(f"{number_of:,} {status}" for status, number_of in sorted(summary.status.items()))
    yield [f"{count(summary.leaf_depth.count, 'leaf', 'leaves')}, {summary.reward.count:,} scored: {leaves}"]
    depth = f"depth {summary.max_depth}, of a leaf {number(summary.leaf_depth.mean)} on average"
    yield [f"mean reward {number(summary.reward.mean)}", depth]
    branching = f"{summary.num_branching:,} of {count(summary.children.count, 'inner node')} branch"
    yield [f"{number(summary.children.mean)} children an inner node on average", branching]


def _depth_row(depth: int, level: Level) -> list[str]:
    means = [number(average.mean) for average in (level.reward, level.advantage, level.abs_advantage)]
    name = f"{MAX_LEVELS}+" if depth == MAX_LEVELS else str(depth)
    return [name, f"{level.num_nodes:,}", f"{level.comparisons:,}", f"{level.decisive:,}", *means]


def _sibling_rows(summary: Summary) -> Iterator[list[str]]:
    """Where siblings are told apart: by depth, and by the tokens between the prompt and them."""
    by_depth = [f"depth {depth}" for depth in range(len(summary.levels))]
    by_depth[MAX_LEVELS:] = [f"depth {MAX_LEVELS}+"] * (len(summary.levels) > MAX_LEVELS)
    by_position = [_span(bin_) for bin_ in range(len(summary.positions))]
    for names, levels in ((by_depth, summary.levels), (by_position, summary.positions)):
        elsewhere = 0.0
        for name, level, share in zip(names, levels, shares_of(levels), strict=True):
            if level.comparisons:
                shown = "-" if share is None else f"{share:.1%}"
                yield [name, f"{level.comparisons:,}", f"{level.decisive:,}", number(level.gap.mean), shown]
            else:
                elsewhere += share or 0.0
        if elsewhere:
            yield ["elsewhere", "", "", "", f"{elsewhere:.1%}"]


def _span(bin_: int) -> str:
    first, last = first_of(bin_), first_of(bin_ + 1) - 1
    return "the prompt's end" if not bin_ else f"{first:,} to {last:,} tokens"


def _table(columns: Sequence[Column], rows: Iterator[list[str]], width: int, *, left: bool = False) -> Iterator[Text]:
    """Header and rows, whose first column stands at the `left` and gives way where even the fewest are too wide.

    A column is as wide as its widest cell, and at least its `size`.
    """
    table = [[column.header for column in columns], *rows]
    sizes = [max(column.size, *(len(row[place]) for row in table)) for place, column in enumerate(columns)]
    sizes[0] = columns[0].size
    shown = list(range(len(columns)))
    while (over := sum(sizes[place] + len(GAP) for place in shown) - len(GAP) - width) > 0:
        leaving = min(
            (place for place in shown if columns[place].leaves), key=lambda place: columns[place].leaves, default=None
        )
        if leaving is None:
            break
        shown.remove(leaving)
    room = sizes[0] - max(over, 0)
    for cells, style in zip(table, ("dim", *[""] * len(table)), strict=False):
        if any(cells[place] for place in shown[1:]):
            name = shorten(cells[0], room)
            first = set_cell_size(name, room) if left else name.rjust(room)
            yield Text(first + "".join(GAP + cells[place].rjust(sizes[place]) for place in shown[1:]), style=style)
