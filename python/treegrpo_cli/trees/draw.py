"""Scored TreeRecord -> lines for a terminal: turns as a tree on the left, numbers in columns on the right.

A turn without siblings stands below its parent in the same column; the drawing moves to the right only
where the tree branches, so that a long chain stays readable. ○ is an open turn, ● one that ends its branch.
All text comes from a model or a file: it is shown without control characters and never as markup.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from treegrpo_cli.trees.format import Fields, inner_nodes, sampled_mask, status_of
from treegrpo_cli.trees.tree_record import TreeRecord

HEADERS = ("depth", "reward", "value", "advantage")
GAP = "  "
MIN_TEXT = 24
FOLD_ABOVE = 40
"""A longer chain of turns without siblings is shown by its first and last ones."""
FOLD_KEEP = 8
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is drawn: `lead` stands in front of its mark, `rest` in front of what hangs below it."""

    node: int
    lead: str
    rest: str


def draw_tree(record: TreeRecord, width: int) -> Iterator[Text]:
    """Yield the lines of one tree, each at most `width` cells wide."""
    nodes, inner = record.nodes, inner_nodes(record.nodes)
    cells = [_numbers(node, node["id"] in inner) for node in nodes]
    sizes = [max(map(len, column)) for column in zip(HEADERS, *cells, strict=True)]
    room = max(width - sum(sizes) - len(GAP) * len(sizes), MIN_TEXT)
    yield from _header(record, inner, width)
    yield _line("", "", HEADERS, sizes, room, "dim")
    for place in _walk(nodes, room // 2):
        if isinstance(place, str):
            yield Text(place, style="dim")
            continue
        node = nodes[place.node]
        is_inner = place.node in inner
        mark = "○ " if status_of(node, is_inner) == "open" else "● "
        space = room - cell_len(place.lead) - len(mark)
        label = _label(node, is_inner, space)
        yield _line(place.lead, mark + label, cells[place.node], sizes, room, _style(node))
        yield from _notes(node, place.rest + ("│ " if is_inner else "  "), width)


def plain(text: str, limit: int = 2000) -> str:
    """Text on one line without control characters; of a very long one the two ends only.

    >>> plain("a\\x1b[31mb\\n\\tc\\u202ed")
    'ab cd'
    """
    text = text if len(text) <= 2 * limit else f"{text[:limit]} … {text[-limit:]}"
    text = " ".join(ESCAPES.sub("", text).split())
    return "".join(c for c in text if not unicodedata.category(c).startswith("C"))


def shorten(text: str, space: int, tail: float = 0.0) -> str:
    """Cut `text` to `space` cells; `tail` is the share of them that goes to its end.

    >>> shorten("<think>so</think><answer>Chad</answer>", 24, tail=0.75)
    '<think…wer>Chad</answer>'
    """
    if cell_len(text) <= space:
        return text
    end = int(max(space - 1, 0) * tail)
    head = set_cell_size(text, max(space - 1 - end, 0)).rstrip()
    return f"{head}…{_last_cells(text, end)}"


def _last_cells(text: str, space: int) -> str:
    start, used = len(text), 0
    while start and used + cell_len(text[start - 1]) <= space:
        start -= 1
        used += cell_len(text[start])
    return text[start:]


def _walk(nodes: Sequence[Fields], max_lead: int) -> Iterator[Place | str]:
    """Yield nodes in the order of drawing, and lines that stand for folded ones; no recursion."""
    children: list[list[int]] = [[] for _ in nodes]
    for child in nodes[1:]:
        children[child["parent"]].append(child["id"])
    stack = [Place(0, "", "")]
    while stack:
        place = stack.pop()
        chain = _chain(place.node, children)
        hidden = range(FOLD_KEEP, len(chain) - FOLD_KEEP) if len(chain) > FOLD_ABOVE else range(0)
        for step, node in enumerate(chain):
            if hidden and step == hidden.start:
                yield f"{place.rest}⋮ {len(hidden):,} more turns, each without a sibling"
            if step not in hidden:
                yield Place(node, place.lead if step == 0 else place.rest, place.rest)
        below = children[chain[-1]]
        rest = place.rest if len(place.rest) < max_lead else f"…{place.rest[-max_lead + 4 :]}"
        for under in reversed(below):
            last = under == below[-1]
            stack.append(Place(under, rest + ("└─" if last else "├─"), rest + ("  " if last else "│ ")))


def _chain(node: int, children: Sequence[Sequence[int]]) -> list[int]:
    chain = [node]
    while len(children[chain[-1]]) == 1:
        chain.append(children[chain[-1]][0])
    return chain


def _header(record: TreeRecord, inner: set[int], width: int) -> Iterator[Text]:
    estimator = plain(str((record.scoring or {}).get("estimator", "")))
    name = shorten(plain(record.prompt_id), width - len(estimator) - 24, 0.5) + f" · tree {record.tree_id}"
    rule = "─" * max(width - cell_len(name) - len(estimator) - 2, 1)
    yield Text.assemble((name, "bold"), (f" {rule} ", "dim"), (estimator, "bold"))
    if question := _question(record):
        yield Text(shorten(question, width), style="italic")
    rewards = [node["reward"] for node in record.nodes if node["reward"] is not None]
    mean = f" · mean reward {number(sum(rewards) / len(rewards))}" if rewards else ""
    num_leaves = len(record.nodes) - len(inner)
    counts = f"{count(len(record.nodes), 'node')} · {count(num_leaves, 'leaf', 'leaves')}, {len(rewards):,} scored"
    yield Text(counts + mean, style="dim")


def _question(record: TreeRecord) -> str:
    question = (record.task or {}).get("question")
    return plain(question) if isinstance(question, str) else ""


def _label(node: Fields, is_inner: bool, space: int) -> str:
    """Status (where a branch ends), then the turn's text with its end, where the action stands."""
    status = status_of(node, is_inner)
    tags = [status] if not is_inner else []
    tags += ["not kept"] if node.get("kept") is False else []
    tag = f"{', '.join(tags)}: " if tags else ""
    text = plain(node.get("text") or "")
    if node["id"] == 0:
        text = f"prompt {text or _token_counts(node)}".strip()
    return tag + shorten(text or _token_counts(node) or f"node {node['id']}", max(space - len(tag), 1), tail=0.6)


def _token_counts(node: Fields) -> str:
    if node.get("token_ids") is None:
        return ""
    num_tokens, num_sampled = len(node["token_ids"]), sum(sampled_mask(node))
    if node.get("sampled") is None or node["id"] == 0:
        return count(num_tokens, "token")
    return f"{num_sampled} sampled + {num_tokens - num_sampled} observed tokens"


def _notes(node: Fields, rest: str, width: int) -> Iterator[Text]:
    for sign, name, style in (("→ ", "observation", "dim"), ("! ", "error", "yellow")):
        text = plain(node.get(name) or "")
        if text:
            shown = shorten(text, max(width - cell_len(rest) - len(sign), 1))
            yield Text.assemble((rest, "dim"), (sign + shown, style))


def _line(lead: str, label: str, cells: Sequence[str], sizes: Sequence[int], room: int, style: str) -> Text:
    left = set_cell_size(label, max(room - cell_len(lead), 0))
    right = "".join(GAP + cell.rjust(size) for cell, size in zip(cells, sizes, strict=True))
    return Text.assemble((lead, "dim"), left, (right, style))


def _numbers(node: Fields, is_inner: bool) -> tuple[str, str, str, str]:
    advantage = node.get("advantage")
    reward = "" if is_inner else number(node["reward"])
    sign = "+" if advantage is not None and advantage > 0 else ""
    return str(node.get("depth", "")), reward, number(node.get("value")), sign + number(advantage)


def number(value: float | None) -> str:
    """Three decimals, or an exponent where they would hide the number; "·" where there is none.

    >>> number(0.5), number(-0.0), number(1e-7), number(None)
    ('0.500', '0.000', '1e-07', '·')
    """
    if value is None:
        return "·"
    if value == 0:
        return "0.000"
    if 5e-4 <= abs(value) < 1e5:
        return f"{value:.3f}"
    return f"{value:.0e}"


def count(number_of: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> count(1, "leaf", "leaves"), count(1200, "node")
    ('1 leaf', '1,200 nodes')
    """
    return f"{number_of:,} {one if number_of == 1 else many or one + 's'}"


def _style(node: Fields) -> str:
    advantage = node.get("advantage")
    if advantage is None or advantage == 0:
        return "dim" if advantage is None else ""
    return "green" if advantage > 0 else "red"
