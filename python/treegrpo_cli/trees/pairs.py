"""Trees of a prompt -> pairs of sibling turns, the better one chosen, in the columns that TRL's DPO trainer reads.

root "Q: " -> turn a "yes" (value 1), turn b "no" (value 0):

    {"prompt": "Q: ", "chosen": "yes", "rejected": "no", "chosen_value": 1.0, "rejected_value": 0.0, ...}

Source: step-level DPO, and preference pairs for process models; a step is a turn here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Any

import numpy as np

from treegrpo_cli._core import CoreError, Forest
from treegrpo_cli.errors import UserError
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.format import Fields
from treegrpo_cli.trees.scoring import placed
from treegrpo_cli.trees.tree_record import AnyTree, TreeRecord, as_records
from treegrpo_cli.types import FLAT

WHICH = ("best-worst", "all")


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn as an answer to what stands before it."""

    tree: int
    """Place of its tree in the group."""
    node: int
    value: float
    content: tuple[int, ...] | str
    """What the policy sampled: token ids, or text."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Turns that answer one context."""

    context: tuple[int, ...] | str
    turns: Sequence[Turn]


def preference_pairs(trees: AnyTree | Iterable[AnyTree], tokenizer: Any = None, **options: Any) -> list[Fields]:
    """Return pairs of siblings, chosen and rejected, whose values differ: rows for TRL's `DPOTrainer`.

    `tokenizer` writes the texts of token ids, and `prompt_ids`, `chosen_ids`, `rejected_ids` stand beside them; without
    one the texts are those that the trees have. All roots of a prompt that hold the same are one state.

    Options: `min_gap` (0), the least difference of values · `which` = `best-worst` (one pair a state) or `all` ·
    `value`, `kappa`, `tau`, `roots` as those of the estimator `parent`. Turns of the same content never pair. Raises
    UserError for an option that is none, and for trees without what a row is made of.

    >>> turns = [{"id": n, "parent": 0, "reward": r, "text": t} for n, r, t in ((1, 1.0, "yes"), (2, 0.0, "no"))]
    >>> nodes = [{"id": 0, "parent": None, "reward": None, "text": "Q: "}, *turns]
    >>> [row] = preference_pairs(TreeRecord(prompt_id="q", tree_id=0, nodes=nodes))
    >>> row["prompt"], row["chosen"], row["rejected"]
    ('Q: ', 'yes', 'no')
    """
    records = sorted(as_records(trees), key=lambda record: record.prompt_id)
    groups = (list(group) for _, group in groupby(records, key=lambda record: record.prompt_id))
    return [row for group in groups for row in pairs_of_group(group, tokenizer, options)]


def pairs_of_group(group: Sequence[TreeRecord], tokenizer: Any, options: Mapping[str, Any]) -> Iterator[Fields]:
    """Yield the rows of one prompt's trees, by state, then by the values and the places of their turns."""
    min_gap, which, of_values = check_options(options)
    for choice in _choices(group, _values(group, of_values), by_tokens=tokenizer is not None, options=of_values):
        for chosen, rejected in _pairs(choice.turns, min_gap, which):
            yield _row(group, choice, chosen, rejected, tokenizer)


def check_options(options: Mapping[str, Any]) -> tuple[float, str, dict[str, Any]]:
    """Return `min_gap`, `which` and the options of values. Raises UserError for one that is wrong or none."""
    of_values = dict(options)
    given, which = of_values.pop("min_gap", 0.0), of_values.pop("which", WHICH[0])
    try:
        min_gap = float(given)
    except (TypeError, ValueError):
        min_gap = -1.0
    if not (isfinite(min_gap) and min_gap >= 0):
        raise UserError(f"pairs: option min_gap: got {given!r:.60}, expected a number, 0 or more")
    if which not in WHICH:
        raise UserError(f"pairs: option which: got {which!r:.60}, expected one of {', '.join(WHICH)}")
    if unknown := of_values.keys() - {"value", "kappa", "tau", "roots"}:
        raise UserError(f"pairs: no option {min(unknown)!r}; there are min_gap, which, value, kappa, tau, roots")
    try:
        Forest().score("parent", of_values)
    except (CoreError, ValueError) as error:
        raise UserError(f"pairs: {getattr(error, 'reason', error)}") from None
    return min_gap, which, of_values


def _values(group: Sequence[TreeRecord], options: dict[str, Any]) -> list[list[float]]:
    """The value of each node of each tree, NaN where no scored leaf is below."""
    try:
        value = to_forest(group, tokens=False).score("parent", options).value
    except CoreError as error:
        raise placed(error, group) from None
    ends = np.cumsum([len(record.nodes) for record in group])
    return [column.tolist() for column in np.split(value, ends[:-1])]


def _choices(
    group: Sequence[TreeRecord], values: Sequence[Sequence[float]], *, by_tokens: bool, options: Mapping[str, Any]
) -> Iterator[Choice]:
    """Turns that have a value, by the state that they answer; what a turn adds before it is sampled is of its state."""
    found: dict[tuple[Any, ...], list[Turn]] = {}
    shared = options.get("roots", "shared") == "shared"
    for place, record in enumerate(group):
        contexts: list[Any] = []
        for node, value in zip(record.nodes, values[place], strict=True):
            above = None if node["parent"] is None else contexts[node["parent"]]
            whole, lead, content = _read_tokens(record, node) if by_tokens else _read_texts(record, node)
            contexts.append(whole if above is None else above + whole)
            if above is not None and value == value and content:
                state = (0, 0) if shared and node["parent"] == 0 else (place, node["parent"])
                found.setdefault((state, above + lead), []).append(Turn(place, node["id"], value, content))
    for (_, context), turns in found.items():
        if len(turns) > 1:
            yield Choice(context, turns)


def _read_tokens(record: TreeRecord, node: Fields) -> tuple[tuple[int, ...], ...]:
    """All tokens of a node, those in front of what was sampled, and that."""
    for name in ("token_ids", "sampled"):
        if node.get(name) is None and (name == "token_ids" or node["parent"] is not None):
            raise record.error(f"node {node['id']} has no {name!r}, of which pairs are made; texts need no tokenizer")
    tokens = tuple(node["token_ids"])
    start, end = (node.get("sampled") or [(0, 0)])[0]
    return tokens, tokens[:start], tokens[start:end]


def _read_texts(record: TreeRecord, node: Fields) -> tuple[str, ...]:
    if node.get("text") is None:
        raise record.error(f"node {node['id']} has no 'text', of which pairs are made; tokens need a tokenizer")
    return node["text"] + (node.get("observation") or ""), "", node["text"]


def _pairs(turns: Sequence[Turn], min_gap: float, which: str) -> Iterator[tuple[Turn, Turn]]:
    """Pairs whose gap is wide enough, better turns first; of `best-worst` the widest alone."""
    value = np.array([turn.value for turn in turns])
    codes: dict[Any, int] = {}
    content = np.array([codes.setdefault(turn.content, len(codes)) for turn in turns])
    widest: tuple[float, tuple[Turn, Turn] | None] = (0.0, None)
    for place in np.argsort(-value, kind="stable").tolist():
        if which != "all" and value[place] - value.min() <= widest[0]:
            break
        gap = np.where(content == content[place], 0.0, value[place] - value)
        wide = (gap > FLAT) & (gap >= min_gap - FLAT)
        if which == "all":
            yield from ((turns[place], turns[other]) for other in np.flatnonzero(wide).tolist())
        elif wide.any() and gap.max() > widest[0]:
            widest = (float(gap.max()), (turns[place], turns[int(gap.argmax())]))
    if widest[1] is not None:
        yield widest[1]


def _row(group: Sequence[TreeRecord], choice: Choice, chosen: Turn, rejected: Turn, tokenizer: Any) -> Fields:
    if tokenizer is None:
        row: Fields = {"prompt": choice.context, "chosen": chosen.content, "rejected": rejected.content}
    else:
        prompt, of_chosen = _decoded(tokenizer, choice.context, chosen.content)
        _, of_rejected = _decoded(tokenizer, choice.context, rejected.content)
        row = {"prompt": prompt, "chosen": of_chosen, "rejected": of_rejected}
        for name, ids in (("prompt", choice.context), ("chosen", chosen.content), ("rejected", rejected.content)):
            row[f"{name}_ids"] = list(ids)
    row["prompt_id"] = group[chosen.tree].prompt_id
    for name, turn in (("chosen", chosen), ("rejected", rejected)):
        row |= {
            f"{name}_tree": group[turn.tree].tree_id,
            f"{name}_node": turn.node,
            f"{name}_value": turn.value,
        }
    return row


def _decoded(tokenizer: Any, context: Any, content: Any) -> tuple[str, str]:
    """Texts of a context, without what a tokenizer puts in front by itself, and of what follows on it."""
    first = tokenizer("")["input_ids"]
    start = len(first) if list(context[: len(first)]) == list(first) else 0
    before, whole = (
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in (context[start:], (*context, *content)[start:])
    )
    if whole.startswith(before):
        return before, whole[len(before) :]
    return before, tokenizer.decode(list(content), skip_special_tokens=False)  # a letter lies across the border


def comes_out_as_it_was(tokenizer: Any, row: Fields) -> bool:
    """Whether TRL's tokenisation of the texts gives the tokens that were sampled; it may end them with an EOS."""
    eos = tokenizer.eos_token or ""

    def ids(text: str) -> list[int]:
        found: list[int] = list(tokenizer(text=text)["input_ids"])
        return found

    if ids(row["prompt"]) != row["prompt_ids"]:
        return False
    for name in ("chosen", "rejected"):
        is_closed = row[name].endswith(eos)
        end = [] if is_closed else [tokenizer.eos_token_id]
        if ids(row["prompt"] + row[name] + ("" if is_closed else eos)) != row["prompt_ids"] + row[f"{name}_ids"] + end:
            return False
    return True
