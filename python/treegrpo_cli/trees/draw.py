"""Scored TreeRecord -> lines for a terminal: turns as a tree on the left, numbers in columns on the right.

A turn without siblings stands below its parent in the same column; the drawing moves to the right only
where the tree branches, so that a long chain stays readable. ○ is an open turn, ● one that ends its branch.
A turn is one line, or, drawn in full, one for its numbers and all of its text and observation below.
No line is wider than the screen. On a narrow one columns give way to text: first depth, then reward, then value.
All text comes from a model or a file: its control characters are shown, never obeyed, and it is never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from treegrpo_cli.trees.branches import Branches
from treegrpo_cli.trees.format import Fields, sampled_mask, status_of
from treegrpo_cli.trees.terms import label_of
from treegrpo_cli.trees.texts import count, folded, number, plain, shorten, signed, wrapped
from treegrpo_cli.trees.tree_record import TreeRecord

HEADERS = ("depth", "reward", "value", "advantage")
GAP = "  "
MIN_TEXT = 24
"""Cells that text has before all columns are drawn; on a screen of less than twice that, half of it."""
GAIN, LOSS = "color(33)", "color(208)"
"""Blue and orange: told apart by the colour-blind, on light and dark; the sign says the same."""
NAME_MARGIN = 24
"""Cells beside the names of a prompt and its scoring on one line: the tree's number and a rule."""
MIN_NAME = 8
FOLD_ABOVE = 40
"""A longer chain of turns without siblings is shown by its first and last ones."""
FOLD_KEEP = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is drawn: `lead` stands in front of its mark, `rest` in front of what hangs below it."""

    node: int
    lead: str
    rest: str


@dataclass(frozen=True, slots=True)
class Column:
    """Numbers below each other, `size` cells wide."""

    header: str
    size: int


def draw_tree(record: TreeRecord, width: int, *, full: bool = False) -> Iterator[Text]:
    """Yield the lines of one tree, each at most `width` cells wide; in `full` no text is cut and no chain folded."""
    nodes, branches = record.nodes, Branches(record.nodes)
    columns = _columns_of(record, branches, width, full)
    room = width - sum(column.size + len(GAP) for column in columns)
    yield from _header(record, branches, width)
    yield _line("", "", [Text(column.header, style="dim") for column in columns], columns, room)
    for place in _walk(branches, room // 2, full):
        if not isinstance(place, Place):
            yield Text(shorten(place, width), style="dim")
            continue
        node, is_inner = nodes[place.node], branches.is_inner(place.node)
        mark = "○ " if status_of(node, is_inner) == "open" else "● "
        label = _label(node, is_inner, room - cell_len(place.lead) - len(mark), full)
        cells = [_cell(node, is_inner, column.header) for column in columns]
        yield _line(place.lead, mark + label, cells, columns, room)
        rest = place.rest + ("│ " if is_inner else "  ")
        yield from _whole_texts(node, rest, width) if full else _notes(node, rest, width)


def _columns_of(record: TreeRecord, branches: Branches, width: int, full: bool) -> list[Column]:
    """Those that leave text its room, the last in any case, and as wide as what stands in them."""
    sizes = dict.fromkeys(HEADERS, 0)
    for place in _walk(branches, width // 2, full):
        if isinstance(place, Place):
            for header in HEADERS:
                cell = _cell(record.nodes[place.node], branches.is_inner(place.node), header)
                sizes[header] = max(sizes[header], len(cell))
    columns = [Column(header, max(len(header), sizes[header])) for header in HEADERS]
    while columns[1:] and width - sum(column.size + len(GAP) for column in columns) < min(MIN_TEXT, width // 2):
        del columns[0]
    return columns


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
        rest = place.rest if len(place.rest) < max_lead else f"…{place.rest[len(place.rest) - max(max_lead - 4, 0) :]}"
        for under in reversed(below):
            last = under == below[-1]
            stack.append(Place(under, rest + ("└─" if last else "├─"), rest + ("  " if last else "│ ")))


def _header(record: TreeRecord, branches: Branches, width: int) -> Iterator[Text]:
    estimator = plain(label_of(record.scoring)) if record.scoring else ""
    tree = f" · tree {record.tree_id}"
    space = width - cell_len(estimator) - NAME_MARGIN
    if space >= MIN_NAME:
        name = shorten(plain(record.prompt_id), space, 0.5) + tree
        rule = "─" * (width - cell_len(name) - cell_len(estimator) - 2)
        yield Text.assemble((name, "bold"), (f" {rule} ", "dim"), (estimator, "bold"))
    else:
        yield Text(shorten(plain(record.prompt_id), width - len(tree), 0.5) + tree, style="bold")
        if estimator:
            yield Text(shorten(estimator, width, 0.5), style="bold")
    if question := _question(record):
        yield Text(shorten(question, width), style="italic")
    rewards = [node["reward"] for node in record.nodes if node["reward"] is not None]
    mean = [f"mean reward {number(sum(rewards) / len(rewards))}"] if rewards else []
    num_leaves = int((branches.num_children == 0).sum())
    leaves = f"{count(num_leaves, 'leaf', 'leaves')}, {len(rewards):,} scored"
    for line in folded([count(len(record.nodes), "node"), leaves, *mean], width):
        yield Text(line, style="dim")


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
    text = text or _token_counts(node) or f"node {node['id']}"
    return shorten(tag + shorten(text, max(space - len(tag), 1), tail=0.6), space)


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
            shown = shorten(text, width - cell_len(rest) - len(sign))
            yield Text.assemble((rest, "dim"), (sign + shown, style))


def _whole_texts(node: Fields, rest: str, width: int) -> Iterator[Text]:
    """Text, observation and error, whole: their own lines, and where one is too long several."""
    space = width - cell_len(rest) - 2
    for sign, name, style in (("  ", "text", ""), ("→ ", "observation", "dim"), ("! ", "error", "yellow")):
        for line in wrapped(node.get(name) or "", space):
            yield Text.assemble((rest, "dim"), (sign + line, style))
            sign = "  "


def _line(lead: str, label: str, cells: Sequence[Text], columns: Sequence[Column], room: int) -> Text:
    line = Text.assemble((lead, "dim"), set_cell_size(label, max(room - cell_len(lead), 0)))
    for cell, column in zip(cells, columns, strict=True):
        line.append(GAP + " " * (column.size - len(cell))).append_text(cell)
    return line


def _cell(node: Fields, is_inner: bool, header: str) -> Text:
    if header == "depth":
        return Text(str(node.get("depth", "")), style="dim")
    if header == "reward":
        return Text("" if is_inner else number(node["reward"]))
    value = node.get(header)
    return Text(number(value) if header == "value" else signed(value), style=style_of(value))


def style_of(value: float | None) -> str:
    """The colour of a number, by its sign."""
    if not value:
        return "dim" if value is None else ""
    return GAIN if value > 0 else LOSS
