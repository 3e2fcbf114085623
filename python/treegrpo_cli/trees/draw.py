"""Scored TreeRecord -> lines for a terminal: turns as a tree on the left, numbers in columns on the right.

A turn without siblings stands below its parent in the same column; the drawing moves to the right only
where the tree branches, so that a long chain stays readable. ○ is an open turn, ● one that ends its branch.
A turn is one line, or, drawn in full, one for its numbers and all of its text and observation below.
All text comes from a model or a file: it is shown without control characters and never as markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from treegrpo_cli.trees.branches import Branches
from treegrpo_cli.trees.format import Fields, sampled_mask, status_of
from treegrpo_cli.trees.terms import label_of
from treegrpo_cli.trees.texts import count, number, plain, shorten, wrapped
from treegrpo_cli.trees.tree_record import TreeRecord

HEADERS = ("depth", "reward", "value", "advantage")
GAP = "  "
MIN_TEXT = 24
FOLD_ABOVE = 40
"""A longer chain of turns without siblings is shown by its first and last ones."""
FOLD_KEEP = 8


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
    estimator = plain(label_of(record.scoring)) if record.scoring else ""
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


def _line(lead: str, label: str, cells: Sequence[str], sizes: Sequence[int], room: int, style: str) -> Text:
    left = set_cell_size(label, max(room - cell_len(lead), 0))
    right = "".join(GAP + cell.rjust(size) for cell, size in zip(cells, sizes, strict=True))
    return Text.assemble((lead, "dim"), left, (right, style))


def _numbers(node: Fields, is_inner: bool) -> tuple[str, str, str, str]:
    advantage = node.get("advantage")
    reward = "" if is_inner else number(node["reward"])
    sign = "+" if advantage is not None and advantage > 0 else ""
    return str(node.get("depth", "")), reward, number(node.get("value")), sign + number(advantage)


def _style(node: Fields) -> str:
    advantage = node.get("advantage")
    if advantage is None or advantage == 0:
        return "dim" if advantage is None else ""
    return "green" if advantage > 0 else "red"
