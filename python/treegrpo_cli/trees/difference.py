"""Two nodes of a scored tree -> their paths side by side from where they part, differing words marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain, takewhile, zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from treegrpo_cli.trees.draw import GAIN, LOSS, style_of
from treegrpo_cli.trees.format import Fields
from treegrpo_cli.trees.texts import count, hanging, number, signed, visible
from treegrpo_cli.trees.tree_record import TreeRecord

BETWEEN = " │ "
MIN_COLUMN = 32
"""Cells that each of two columns needs; on a narrower screen they stand below each other."""
MAX_WORDS = 1000
"""Of longer stretches that differ every word counts as different."""
MARKS = ("[-", "-]", LOSS), ("{+", "+}", GAIN)
"""Around the words of one side that the other has not, and their colours."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text, and whether the other side has it too."""

    text: str
    is_common: bool


def difference_lines(record: TreeRecord, one: int, other: int, width: int) -> Iterator[Text]:
    """Yield the lines, none wider than `width` cells. Raises UserError for two nodes that cannot be compared."""
    for node in (one, other):
        if not 0 <= node < len(record.nodes):
            raise record.error(f"tree {record.tree_id} has no node {node}: its nodes are 0 to {len(record.nodes) - 1}")
    if one == other:
        raise record.error(f"--diff {one} {other}: both are the same node")
    paths = _path(record, one), _path(record, other)
    num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*paths, strict=False)))
    for line in _head(record, one, other, paths[0][:num_common]):
        yield from map(Text, hanging(visible(line), width))
    below = [[record.nodes[node] for node in path[num_common:]] for path in paths]
    if not all(below):
        yield from _what_follows(record, min(one, other), below[0] or below[1], width)
        return
    yield from map(Text, hanging(_parting(*below), width))
    has_parted = False
    for one_turn, other_turn in zip_longest(*below):
        yield Text("")
        parts = not has_parted and _text(one_turn) != _text(other_turn)
        yield from _beside(*_two_turns(one_turn, other_turn, is_parting=parts), width)
        has_parted |= parts


def _text(node: Fields | None) -> str:
    return (node or {}).get("text") or ""


def _path(record: TreeRecord, node: int) -> list[int]:
    path = [node]
    while (parent := record.nodes[path[-1]]["parent"]) is not None:
        path.append(parent)
    return path[::-1]


def _head(record: TreeRecord, one: int, other: int, common: Sequence[int]) -> Iterator[str]:
    yield f"nodes {one} and {other} of tree {record.tree_id}, prompt_id {record.prompt_id!r}"
    last = record.nodes[common[-1]]
    turns = count(len(common) - 1, "turn")
    yield f"common path: the prompt and {turns}, to node {common[-1]} · {_worth(last)}"


def _what_follows(record: TreeRecord, ancestor: int, below: Sequence[Fields], width: int) -> Iterator[Text]:
    said = f"node {ancestor} is on the way to node {below[-1]['id']}, so they do not part; behind it come:"
    yield from map(Text, hanging(said, width))
    for node in below:
        yield Text("")
        for line in _turn(node, [Piece(node.get("text") or "", True)], [Piece(node.get("observation") or "", True)], 0):
            yield from _wrapped(line, width)


def _worth(node: Fields) -> str:
    leaves = count(node.get("num_leaves") or 0, "scored leaf", "scored leaves")
    return f"value {number(node.get('value'))} · {leaves}"


def _parting(one: Sequence[Fields], other: Sequence[Fields]) -> str:
    """Behind which of their tokens two paths differ, where they have any; siblings may begin alike."""
    if any(node.get("token_ids") is None for node in (*one, *other)):
        return "the first words that differ are marked ▸"
    sides = [list(chain.from_iterable(node["token_ids"] for node in path)) for path in (one, other)]
    num_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*sides, strict=False)))
    if num_equal == len(sides[0]) == len(sides[1]):
        return f"both paths hold the same {count(num_equal, 'token')}"
    tokens = [str(side[num_equal]) if num_equal < len(side) else "the end" for side in sides]
    behind = f"behind {count(num_equal, 'equal token')}" if num_equal else "at once"
    return f"their tokens part {behind}: {tokens[0]} against {tokens[1]}; the first words that differ are marked ▸"


def _two_turns(one: Fields | None, other: Fields | None, *, is_parting: bool) -> tuple[list[Text], list[Text]]:
    nodes = one or {}, other or {}
    texts = compared(nodes[0].get("text") or "", nodes[1].get("text") or "")
    seen = compared(nodes[0].get("observation") or "", nodes[1].get("observation") or "")
    first, second = (
        _turn(node, texts[side], seen[side], side, is_parting=is_parting) if node else []
        for side, node in enumerate(nodes)
    )
    return first, second


def _turn(
    node: Fields, text: Sequence[Piece], seen: Sequence[Piece], side: int, *, is_parting: bool = False
) -> list[Text]:
    """A turn's lines, not yet wrapped: its numbers, what it said, what it saw."""
    numbers = Text.assemble(
        (f"node {node['id']}", "bold"), f" · depth {node.get('depth')} · {_worth(node)} · advantage "
    )
    numbers.append(signed(node.get("advantage")), style=style_of(node.get("advantage")))
    if node["reward"] is not None:
        numbers.append(f" · reward {number(node['reward'])}")
    lines = [numbers, *_marked(text, side, "  ", is_parting)]
    return lines + (_marked(seen, side, "→ ", False) if any(piece.text for piece in seen) else [])


def _marked(pieces: Sequence[Piece], side: int, sign: str, is_parting: bool) -> list[Text]:
    before, behind, style = MARKS[side]
    text = Text(sign)
    for piece in pieces:
        shown = "\n".join(visible(line.expandtabs(4)) for line in re.split(r"\r\n|[\r\n]", piece.text))
        if piece.is_common or not piece.text.strip():
            text.append(shown)
        else:
            text.append("▸" if is_parting else "").append(f"{before}{shown}{behind}", style=style)
            is_parting = False
    return list(text.split("\n"))


def compared(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces of whole words, with what they have in common.

    >>> compared("go up now", "go down now")[0]
    [Piece(text='go ', is_common=True), Piece(text='up', is_common=False), Piece(text=' now', is_common=True)]
    """
    words = [re.findall(r"\s+|\S+", text) for text in (one, other)]
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for kind, *ends in _opcodes(*words):
        for side, start, end in ((0, *ends[:2]), (1, *ends[2:])):
            if start < end:
                sides[side].append(Piece("".join(words[side][start:end]), kind == "equal"))
    return sides


def _opcodes(one: Sequence[str], other: Sequence[str]) -> Sequence[tuple[str, int, int, int, int]]:
    """As difflib has them; of long texts that differ only what begins them is told to be equal."""
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    if max(len(one), len(other)) - start > MAX_WORDS:
        return [("equal", 0, start, 0, start), ("replace", start, len(one), start, len(other))]
    return SequenceMatcher(None, one, other, autojunk=False).get_opcodes()


def _beside(one: Sequence[Text], other: Sequence[Text], width: int) -> Iterator[Text]:
    """Two columns; where they would be narrow, one below the other."""
    space = (width - len(BETWEEN)) // 2
    if space < MIN_COLUMN:
        for line in (*one, *other):
            yield from _wrapped(line, width)
        return
    sides = [[piece for line in side for piece in _wrapped(line, space)] for side in (one, other)]
    for left, right in zip_longest(*sides, fillvalue=Text("")):
        line = left.copy()
        line.append(" " * (space - cell_len(left.plain))).append(BETWEEN, style="dim").append_text(right)
        yield line


def _wrapped(line: Text, space: int) -> Iterator[Text]:
    for piece in line.wrap(Console(width=space), space, overflow="fold"):
        piece.rstrip()
        yield piece
