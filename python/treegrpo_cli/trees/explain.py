"""One node of a scored group -> how it came by its advantage, term by term, and which tokens take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from treegrpo_cli.trees.estimators import estimators
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.format import Fields
from treegrpo_cli.trees.own_estimator import is_own
from treegrpo_cli.trees.terms import terms_of
from treegrpo_cli.trees.texts import count, number, signed
from treegrpo_cli.trees.tree_record import TreeRecord

if TYPE_CHECKING:
    from treegrpo_cli._core import Explanation, Forest

SHOWN_LEAVES = 40
"""Of more leaves below a node the first ones are listed; all of them count."""
CASES = {"flat": "all equal, so the term is 0", "single": "alone in its group"}
ENOUGH = 1e-6


@dataclass(frozen=True, slots=True)
class Reach:
    """A scored leaf at or below the node: what its row takes from the node, in sampled tokens."""

    leaf: int
    reward: float
    own_tokens: int
    """Sampled tokens of the node itself, which stand in this leaf's row."""
    path_tokens: int
    """Sampled tokens of the whole row."""


def explain(group: Sequence[TreeRecord], place: int, node: int) -> Iterator[str]:
    """Yield lines that split the advantage of a node of `group[place]`, whose trees are all of one prompt, scored.

    Raises UserError for a node that the tree does not have, and for a scoring that is not one of ours.
    """
    record = group[place]
    if not 0 <= node < len(record.nodes):
        raise record.error(f"tree {record.tree_id} has no node {node}: its nodes are 0 to {len(record.nodes) - 1}")
    scoring = record.scoring or {}
    _check_ours(record, scoring)
    first = sum(len(other.nodes) for other in group[:place])
    forest = to_forest(group)
    try:
        found = forest.score(terms_of(scoring)).explain(first + node)
    except ValueError as error:
        raise record.error(f"scoring: {error}") from None
    yield from _head(record, node, scoring, found)
    yield from _terms(record, found, first)
    yield from _tokens(_reach(record, forest, first, node), found)


def _check_ours(record: TreeRecord, scoring: Fields) -> None:
    for term in terms_of(scoring):
        if is_own(term["estimator"]):
            raise record.error(
                f"scoring: {term['estimator']} is a function of somebody's own, which cannot be explained"
            )


def _head(record: TreeRecord, node: int, scoring: Fields, found: Explanation) -> Iterator[str]:
    fields, known = record.nodes[node], estimators()
    below = count(fields["num_leaves"], "scored leaf", "scored leaves")
    yield f"node {node} of tree {record.tree_id}, prompt_id {record.prompt_id!r}: depth {fields['depth']}, {below}"
    elsewhere = f", {signed(fields['unmasked_advantage'])} outside tool calls" if "unmasked_advantage" in fields else ""
    yield f"value {number(found['value'])} · advantage {signed(found['advantage'])}{elsewhere}"
    for term in terms_of(scoring):
        weight = "" if term["weight"] == 1 else f"{number(term['weight'])}·"
        mask = f" on {term['mask']}" if "mask" in term else ""
        yield f"{weight}{term['estimator']}{mask}: {known[term['estimator']]['formula']}"
        yield ", ".join(f"{name}={value}" for name, value in term["options"].items())
    said, computed = fields["advantage"], found["advantage"]
    if (said is None) != (computed is None) or abs((said or 0) - (computed or 0)) > ENOUGH * max(1, abs(said or 0)):
        yield f"the file says {signed(said)}: it was scored beside other trees, or rewards have changed since"
    yield ""


def _terms(record: TreeRecord, found: Explanation, first: int) -> Iterator[str]:
    if not found["nodes"]:
        root = found["advantage"] == 0
        yield "the root is the prompt: nothing was chosen there" if root else "no scored leaf below: it is left out"
        return
    columns = zip(*(_column(found, name) for name in TERM_COLUMNS), strict=True)
    rows = [dict(zip(TERM_COLUMNS, row, strict=True)) for row in columns]
    below, own = ([row for row in rows if row["of_leaf"] == of_leaf] for of_leaf in (True, False))
    if below:
        num_leaves = len({row["nodes"] for row in below})
        yield (
            f"the mean over {count(num_leaves, 'leaf', 'leaves')} at or below it:"
            if num_leaves > 1
            else "the advantage of its leaf:"
        )
        yield from _sums(below, first)
    if own:
        yield from ["and of the node itself:"] if below else []
        yield from _sums(own, first)


def _sums(rows: Sequence[Mapping[str, Any]], first: int) -> Iterator[str]:
    num_nodes = len({row["nodes"] for row in rows})
    for node, of_node in islice(groupby(rows, key=lambda row: int(row["nodes"])), SHOWN_LEAVES):
        terms = list(of_node)
        summands = " ".join(_summand(term) for term in terms if term["weight"])
        yield f"  node {node - first}: {summands} = {signed(sum(term['contribution'] for term in terms))}"
        yield from (f"    {_term(term)}" for term in terms)
    if num_nodes > SHOWN_LEAVES:
        yield f"  … {num_nodes - SHOWN_LEAVES:,} more"


TERM_COLUMNS = (
    "nodes",
    "of_leaf",
    "mask",
    "term",
    "group",
    "group_size",
    "group_mean",
    "group_std",
    "case",
    "raw",
    "baseline",
    "factor",
    "scale",
    "measured",
    "weight",
    "contribution",
)


def _column(found: Explanation, name: str) -> list[Any]:
    return found[name]  # type: ignore[literal-required, no-any-return]


def _summand(term: Mapping[str, Any]) -> str:
    weight = "" if term["weight"] == 1 else f"{number(term['weight'])}·"
    mask = f" on {term['mask']}" if term["mask"] else ""
    return f"{signed(term['contribution'])} {weight}{term['term']}{mask}"


def _term(term: Mapping[str, Any]) -> str:
    group = f"{term['group']}: {count(term['group_size'], 'value')}, mean {number(term['group_mean'])}"
    spread = f", std {number(term['group_std'])}" if term["group_std"] is not None else ""
    if term["case"] in CASES and term["measured"] == 0:
        return f"{term['term']}: 0, {CASES[term['case']]} ({group}{spread})"
    factor = f"{number(term['factor'])} · " if term["factor"] != 1 else ""
    scale = f" / {number(term['scale'])}" if term["scale"] != 1 else ""
    formula = f"{factor}({number(term['raw'])} - {number(term['baseline'])}){scale}"
    return f"{term['term']}: {formula} = {signed(term['measured'])} ({group}{spread})"


def _reach(record: TreeRecord, forest: Forest, first: int, node: int) -> list[Reach]:
    sampled = forest.gen_tokens()[first : first + len(record.nodes)].tolist()
    parents = [fields["parent"] for fields in record.nodes]
    path_tokens, below = [0] * len(parents), [False] * len(parents)
    reached = []
    for place, parent in enumerate(parents):
        path_tokens[place] = sampled[place] + (0 if parent is None else path_tokens[parent])
        below[place] = place == node or (parent is not None and below[parent])
        if below[place] and record.nodes[place]["reward"] is not None:
            reached.append(Reach(place, record.nodes[place]["reward"], sampled[node], path_tokens[place]))
    return reached


def _tokens(reached: Sequence[Reach], found: Explanation) -> Iterator[str]:
    if not reached or not any(reach.path_tokens for reach in reached):
        return
    own = reached[0].own_tokens
    taken = "the advantage of each row's leaf" if found["leaf_level"] else "the node's advantage"
    if found["leaf_level"] and not all(found["of_leaf"]):
        taken = "the advantage of each row's leaf plus the node's own"
    if any(found["mask"]):
        taken += ", what is on tool-calls where they are part of one"
    yield ""
    yield f"{count(own, 'sampled token')} of the node, in {count(len(reached), 'row')}, take {taken}:"
    for reach in reached[:SHOWN_LEAVES]:
        yield (
            f"  leaf {reach.leaf}, reward {number(reach.reward)}: {reach.own_tokens:,} of the row's "
            f"{count(reach.path_tokens, 'sampled token')}"
        )
    if len(reached) > SHOWN_LEAVES:
        yield f"  … {len(reached) - SHOWN_LEAVES:,} more"
