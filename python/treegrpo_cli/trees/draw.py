"""Scored TreeRecord -> lines for a terminal: turns as a tree on the left, numbers in columns on the right.

A turn without siblings stands below its parent in the same column; the drawing moves to the right only
where the tree branches, so that a long chain stays readable. ○ is an open turn, ● one that ends its branch.
A turn is one line, or, drawn in full, one for its numbers and all of its text and observation below.
All text comes from a model or a file: it is shown without control characters and never as markup.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from treegrpo_cli.trees.branches import Branches
from treegrpo_cli.trees.format import Fields, sampled_mask, status_of
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


def draw_tree(record: TreeRecord, width: int, *, full: bool = False) -> Iterator[Text]:
    """Yield the lines of one tree, each at most `width` cells wide; in `full` no text is cut and no chain folded."""
    nodes, branches = record.nodes, Branches(record.nodes)
    sizes = [len(header) for header in HEADERS]
    for place in _walk(branches, width // 2, full):
        if isinstance(place, Place):
            sizes = list(map(max, sizes, map(len, _numbers(nodes[place.node], branches.is_inner(place.node)))))
    room = max(width - sum(sizes) - len(GAP) * len(sizes), MIN_TEXT)
    yield from _header(record, branches, width)
    yield _line("", "", HEADERS, sizes, room, "dim")
    for place in _walk(branches, room // 2, full):
        if not isinstance(place, Place):
            yield Text(place, style="dim")
            continue
        node, is_inner = nodes[place.node], branches.is_inner(place.node)
        mark = "○ " if status_of(node, is_inner) == "open" else "● "
        space = room - cell_len(place.lead) - len(mark)
        label = _label(node, is_inner, space, full)
        yield _line(place.lead, mark + label, _numbers(node, is_inner), sizes, room, _style(node))
        rest = place.rest + ("│ " if is_inner else "  ")
        yield from _whole_texts(node, rest, width) if full else _notes(node, rest, width)


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


def _walk(branches: Branches, max_lead: int, full: bool) -> Iterator[Place | str]:
    """Yield nodes in the order of drawing, and lines that stand for folded ones; no recursion."""
    stack = [Place(0, "", "")]
    while stack:
        place = stack.pop()
        chain = branches.chain(place.node)
        fold = len(chain) > FOLD_ABOVE and not full
        head, tail = (chain[:FOLD_KEEP], chain[-FOLD_KEEP:]) if fold else (chain, [])
        yield from (Place(node, place.rest if step else place.lead, place.rest) for step, node in enumerate(head))
        if fold:
            yield f"{place.rest}⋮ {len(chain) - 2 * FOLD_KEEP:,} more turns, each without a sibling"
        yield from (Place(node, place.rest, place.rest) for node in tail)
        below = branches.children(chain[-1])
        rest = place.rest if len(place.rest) < max_lead else f"…{place.rest[-max_lead + 4 :]}"
        for under in reversed(below):
            last = under == below[-1]
            stack.append(Place(under, rest + ("└─" if last else "├─"), rest + ("  " if last else "│ ")))


def _header(record: TreeRecord, branches: Branches, width: int) -> Iterator[Text]:
    estimator = plain(str((record.scoring or {}).get("estimator", "")))
    name = shorten(plain(record.prompt_id), width - len(estimator) - 24, 0.5) + f" · tree {record.tree_id}"
    rule = "─" * max(width - cell_len(name) - len(estimator) - 2, 1)
    yield Text.assemble((name, "bold"), (f" {rule} ", "dim"), (estimator, "bold"))
    if question := _question(record):
        yield Text(shorten(question, width), style="italic")
    rewards = [node["reward"] for node in record.nodes if node["reward"] is not None]
    mean = f" · mean reward {number(sum(rewards) / len(rewards))}" if rewards else ""
    num_leaves = int((branches.num_children == 0).sum())
    counts = f"{count(len(record.nodes), 'node')} · {count(num_leaves, 'leaf', 'leaves')}, {len(rewards):,} scored"
    yield Text(counts + mean, style="dim")


def _question(record: TreeRecord) -> str:
    question = (record.task or {}).get("question")
    return plain(question) if isinstance(question, str) else ""


def _label(node: Fields, is_inner: bool, space: int, full: bool) -> str:
    """Status (where a branch ends), then the turn's text with its end, where the action stands."""
    status = status_of(node, is_inner)
    tags = [status] if not is_inner else []
    tags += ["not kept"] if node.get("kept") is False else []
    tag = f"{', '.join(tags)}: " if tags else ""
    text = plain(node.get("text") or "")
    if full:
        text = " · ".join(filter(None, ("prompt" * (node["id"] == 0), f"node {node['id']}", _token_counts(node))))
    elif node["id"] == 0:
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


def _whole_texts(node: Fields, rest: str, width: int) -> Iterator[Text]:
    """Text, observation and error, whole: their own lines, and where one is too long several."""
    space = max(width - cell_len(rest) - 2, MIN_TEXT // 2)
    for sign, name, style in (("  ", "text", ""), ("→ ", "observation", "dim"), ("! ", "error", "yellow")):
        for line in wrapped(node.get(name) or "", space):
            yield Text.assemble((rest, "dim"), (sign + line, style))
            sign = "  "


def wrapped(text: str, space: int) -> Iterator[str]:
    """The text's lines, without control characters, each in pieces of at most `space` cells, cut at blanks.

    >>> list(wrapped("one two three\\n  four", 8))
    ['one two', 'three', '  four']
    """
    for line in ESCAPES.sub("", text).splitlines():
        shown = "".join(c for c in line.expandtabs(4) if not unicodedata.category(c).startswith("C"))
        start = 0
        while start < len(shown) or start == 0:
            end = _fitting(shown, start, space)
            blank = shown.rfind(" ", start + 1, end + 1)
            cut = end if end == len(shown) or blank < 0 or not shown[start:blank].strip() else blank
            yield shown[start:cut].rstrip()
            start = cut + (shown[cut : cut + 1] == " ") if cut else 1


def _fitting(text: str, start: int, space: int) -> int:
    """Behind the last character that fits into `space` cells from `start` on; one at least."""
    end, used = start, 0
    while end < len(text) and (used := used + cell_len(text[end])) <= space:
        end += 1
    return max(end, min(start + 1, len(text)))


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
