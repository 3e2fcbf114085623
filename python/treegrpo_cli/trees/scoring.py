"""Trees -> scored trees: one prompt's trees are a group, and advantages are within it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli._core import CoreError, Forest, describe_estimators
from treegrpo_cli.errors import UserError
from treegrpo_cli.terms import read_term
from treegrpo_cli.trees.collection import Trees
from treegrpo_cli.trees.column_checks import column_of
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.format import Fields
from treegrpo_cli.trees.own_estimator import TIMEOUT_S, AnswerError, is_own
from treegrpo_cli.trees.sums import check_weighing, resolved_terms, score_forest
from treegrpo_cli.trees.terms import PARTS, parts_of, scoring_of
from treegrpo_cli.trees.tree_record import AnyTree, TreeRecord, as_records
from treegrpo_cli.types import MAX_REWARD

if TYPE_CHECKING:
    from treegrpo_cli._core import Scores, ScoreTerm

DEFAULT_ESTIMATOR = "tree-grpo"

Options = Mapping[str, str | float | int | bool]


def score(
    trees: AnyTree | Iterable[AnyTree],
    estimator: str | Callable[..., Any] = DEFAULT_ESTIMATOR,
    *,
    terms: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> Trees:
    """Return scored copies of the trees, in their order; a group is the trees of one prompt_id.

    `trees` are records, or dicts as `TreeRecord.from_dict` takes them, or one of either. `estimator` is a name, or
    your own function of columns (see `own_estimator`): itself, or its path, `file.py:function`. `terms`, in place of an
    `estimator`, are those of a sum: dicts of `estimator`, `weight` and options, as `[[advantage.terms]]` in settings.

    Each node gains `depth`, `num_leaves`, `value` and `advantage`, the tree `scoring`. Raises UserError
    for an unknown estimator or option, a value out of range, and two trees of one prompt_id and tree_id.

    >>> def chain(tree_id, reward):
    ...     nodes = [{"id": 0, "parent": None, "reward": None}, {"id": 1, "parent": 0, "reward": reward}]
    ...     return TreeRecord(prompt_id="q1", tree_id=tree_id, nodes=nodes)
    >>> [tree.nodes[1]["advantage"] for tree in score([chain(0, 1.0), chain(1, 0.0)], "grpo", scale="none")]
    [0.5, -0.5]
    >>> both = [{"estimator": "grpo", "scale": "none"}, {"estimator": "parent", "weight": 0.5}]
    >>> [tree.nodes[1]["advantage"] for tree in score([chain(0, 1.0), chain(1, 0.0)], terms=both)]
    [0.75, -0.75]
    """
    records = as_records(trees)
    seen = set[tuple[str, int]]()
    for record in records:
        if (tree := (record.prompt_id, record.tree_id)) in seen:
            raise record.error(f"a second tree {record.tree_id} of prompt_id {record.prompt_id!r}")
        seen.add(tree)
    return Trees(score_group(records, _asked(estimator, terms, options)))


def _asked(
    estimator: str | Callable[..., Any], terms: Sequence[Mapping[str, Any]], options: Options
) -> list[ScoreTerm]:
    if not terms:
        return [{"estimator": estimator, "options": dict(options)}]  # type: ignore[typeddict-item]
    if options or estimator != DEFAULT_ESTIMATOR:
        raise UserError("an estimator and its options beside terms: they stand in a term of their own")
    try:
        return [read_term(term) for term in terms]
    except ValueError as error:
        raise UserError(f"terms: {error}") from None


def score_group(
    records: Sequence[TreeRecord],
    terms: str | Sequence[ScoreTerm],
    options: Options | None = None,
    *,
    in_place: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> list[TreeRecord]:
    """Return scored copies of trees, of one prompt or several. Raises UserError as `score` does.

    `terms` are an estimator, with its `options`, or those of a sum.

    `in_place` saves the copies: the given trees are the caller's no more. `timeout_s` is how long a function of the
    user's own may take for a prompt.
    """
    if isinstance(terms, str):
        terms = [{"estimator": terms, "options": dict(options or {})}]
    _check_terms(terms)
    forest = to_forest(records, tokens=_need_tokens(records, terms))
    try:
        scores = score_forest(forest, terms, timeout_s=timeout_s)
    except CoreError as error:
        raise (placed(error, records) if error.node is not None else _unplaced(error, records, terms)) from None
    except AnswerError as error:
        raise _in_file(error, records) from error.__cause__
    if (np.abs(scores.value) > MAX_REWARD).any():  # a leaf's value is its reward
        raise _too_large(records)
    resolved = resolved_terms(terms)
    if _stand_alone(records) and any(map(_compares_twice, resolved)):
        warnings.warn(
            "tree-grpo over a single tree of a prompt: both its terms are the same, and advantages double",
            stacklevel=2,
        )
    return with_scores(records, scores, resolved, in_place=in_place)


def keep_or_score(records: Sequence[TreeRecord], *, in_place: bool = False) -> list[TreeRecord]:
    """One prompt's trees with the scoring that they have, or as `score_group` does it by `tree-grpo`."""
    unscored = [record for record in records if record.scoring is None]
    if not unscored:
        return list(records)
    if len(unscored) < len(records):
        raise unscored[0].error(
            "has no scoring, but other trees of its prompt do: name an estimator to score them together"
        )
    return score_group(records, DEFAULT_ESTIMATOR, {}, in_place=in_place)


def with_scores(
    records: Iterable[TreeRecord],
    scores: Scores,
    terms: Sequence[Mapping[str, Any]] = (),
    *,
    in_place: bool = False,
) -> list[TreeRecord]:
    """Return the trees, copied or `in_place`, with the scores of a forest of their nodes, and no others, in order.

    `terms`, resolved, are needed where one is of the user's own.
    """
    return list(each_with_scores(records, scores, terms, in_place=in_place))


def each_with_scores(
    records: Iterable[TreeRecord],
    scores: Scores,
    terms: Sequence[Mapping[str, Any]] = (),
    *,
    in_place: bool = False,
) -> Iterator[TreeRecord]:
    """Yield what `with_scores` returns, each tree as it is asked for: no other is held."""
    parts = {name: _or_none(column) for name, column in parts_of(scores).items()}
    columns = scores.depth.tolist(), scores.num_leaves.tolist(), _or_none(scores.value), _or_none(scores.advantage)
    names = ("depth", "num_leaves", "value", "advantage", *parts)
    added = (dict(zip(names, row, strict=True)) for row in zip(*columns, *parts.values(), strict=True))
    scoring = scoring_of(terms or scores.terms)
    return (_added_to(record, added, scoring, in_place) for record in records)


def _added_to(record: TreeRecord, added: Iterator[Fields], scoring: Fields, in_place: bool) -> TreeRecord:
    nodes = record.nodes if in_place else list(map(dict.copy, record.nodes))
    for node, fields in zip(nodes, added, strict=False):
        if record.scoring is not None:
            _drop_parts(node, fields)
        node.update(fields)
    return record.replaced(nodes=nodes, scoring=scoring)


def _check_terms(terms: Sequence[ScoreTerm]) -> None:
    """Raise UserError where terms are wrong whatever the trees are."""
    check_weighing(terms)
    ours = [term for term in terms if not is_own(term["estimator"])]
    try:
        if ours or not terms:
            Forest().score(ours)
    except CoreError as error:
        raise UserError(error.reason) from None
    except ValueError as error:  # an option of a type that no option has
        raise UserError(str(error)) from None


def _need_tokens(records: Sequence[TreeRecord], terms: Sequence[ScoreTerm]) -> bool:
    """Whether an estimator reads tokens. Raises UserError where one does and nodes have none."""
    names = [term["estimator"] for term in terms]
    readers = {known["name"] for known in describe_estimators() if known["reads_tokens"]}
    for name in readers.intersection(names):
        for record in records:
            if None in (column := column_of(record.nodes, "token_ids")):
                if name == "anchor" and None not in column_of(record.nodes[1:], "state_key"):
                    continue
                raise record.error(f"node {column.index(None)} has no 'token_ids', by which {name} knows equal states")
    is_masked = any("mask" in term for term in terms)
    if is_masked:
        _check_tool_calls(records)
    return is_masked or not readers.isdisjoint(names) or any(map(is_own, names))


def _check_tool_calls(records: Sequence[TreeRecord]) -> None:
    for record in records:
        if None in (column := column_of(record.nodes[1:], "tool_call_spans")):
            node = 1 + column.index(None)
            raise record.error(f"node {node} has no 'tool_call_spans', which a term's mask tool-calls reads")


def _drop_parts(node: Fields, fields: Fields) -> None:
    """Take out what another scoring had beside the advantage."""
    for name in PARTS:
        if name not in fields:
            node.pop(name, None)


def _compares_twice(term: Mapping[str, Any]) -> bool:
    return bool(term["estimator"] == "tree-grpo" and term["options"]["variant"] == "sum")


def _stand_alone(records: Sequence[TreeRecord]) -> bool:
    """Whether a tree is the only one of its prompt."""
    return 1 in Counter(record.prompt_id for record in records).values()


def _too_large(records: Sequence[TreeRecord]) -> UserError:
    nodes = ((record, node) for record in records for node in record.nodes)
    record, node = next(place for place in nodes if abs(place[1]["reward"] or 0) > MAX_REWARD)
    return record.error(f"node {node['id']}: reward {node['reward']} is too large, expected at most {MAX_REWARD}")


def _or_none(column: NDArray[np.float64]) -> list[float | None]:
    values = column.tolist()
    return [None if value != value else value for value in values] if np.isnan(column).any() else values


def placed(error: CoreError, records: Sequence[TreeRecord]) -> UserError:
    """The core's error, its forest-wide ids turned into file, line and the tree's own."""
    if error.tree is None or error.node is None:
        return UserError(error.reason)
    record = records[error.tree]
    first = sum(len(record.nodes) for record in records[: error.tree])
    return record.error(f"tree {record.tree_id}, node {error.node - first}: {error.reason}")


def _unplaced(error: CoreError, records: Sequence[TreeRecord], terms: Sequence[ScoreTerm]) -> UserError:
    """The core's error that is at no node, with the place of the first tree that it is true of."""
    ours = [term for term in terms if not is_own(term["estimator"])]
    tokens = _need_tokens(records, terms)
    lacking = (record for record in records if _fails(to_forest([record], tokens=tokens), ours))
    return next(lacking, records[0]).error(error.reason)


def _fails(forest: Forest, terms: Sequence[ScoreTerm]) -> bool:
    try:
        forest.score(terms)
    except CoreError:
        return True
    return False


def _in_file(error: AnswerError, records: Sequence[TreeRecord]) -> UserError:
    """The mistake of a user's function, with the place of the prompt at which it was made."""
    ends = accumulate(len(record.nodes) for record in records)
    record = next(record for record, end in zip(records, ends, strict=True) if error.node < end)
    located = record.error(str(error))
    located.trace = error.trace
    return located
