"""The training layout and its micro-batches agree with the slow reference, and with what they promise."""

import random
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import NO_PARENT, CoreError, Forest, Layout, MicroBatch, Scores
from treegrpo_cli.types import NodeStatus

from tests import reference, reference_layout
from tests.forests import forest_of, make_node, trees
from tests.reference import Node, Tree

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm

FORESTS = trees(vocabulary=2, shared_prompts=True) | trees(vocabulary=3)
MAX_TOKENS = st.integers(1, 16) | st.just(1000)
SETTINGS = st.fixed_dictionaries(
    {
        "estimator": st.sampled_from(["grpo", "parent", "sum", "a sum of one level", "a masked sum", "masks alone"]),
        "p": st.sampled_from([0.0, 0.5, 1.0]),
        "shared": st.booleans(),
        "row_mean": st.booleans(),
        "seed": st.integers(0, 9),
    }
)
EXAMPLES = settings(max_examples=120, deadline=None)


SUMS: "dict[str, list[ScoreTerm]]" = {
    "sum": [
        {"estimator": "tree-grpo", "options": {"scale": "none"}},
        {"estimator": "parent", "weight": 0.75},
        {"estimator": "sibling", "weight": 0.5},
    ],
    "a sum of one level": [{"estimator": "grpo"}, {"estimator": "tree-grpo", "weight": 0.3}],
    "a masked sum": [
        {"estimator": "grpo", "options": {"scale": "none"}},
        {"estimator": "tree-grpo", "weight": 0.5, "mask": "tool-calls"},
        {"estimator": "parent", "weight": 0.75},
        {"estimator": "sibling", "weight": 2.0, "mask": "tool-calls"},
    ],
    "masks alone": [{"estimator": "grpo", "mask": "tool-calls"}, {"estimator": "parent", "mask": "tool-calls"}],
}


def scored(forest: list[Tree], estimator: str, seed: int) -> tuple[Forest, Scores, list[Node]]:
    core, nodes = forest_of(forest, random.Random(seed))
    return core, core.score(SUMS.get(estimator, estimator)), nodes


def packed(forest: list[Tree], *, estimator: str, p: float, shared: bool, seed: int, row_mean: bool = False) -> Layout:
    core, scores, _ = scored(forest, estimator, seed)
    return core.pack(scores, p, shared=shared, row_mean=row_mean)


def reference_of(
    forest: list[Tree], scores: Scores, nodes: list[Node], p: float, shared: bool, row_mean: bool
) -> reference_layout.Layout:
    """The slow layout, with the advantages that the core gave; tests of the estimators compare those."""
    total, weight, unmasked = on_the_way(scores, nodes), own_weight(scores, nodes), None
    if scores.unmasked_advantage is not None:
        unmasked = on_the_way(scores, nodes, "unmasked_")
    return reference_layout.layout(forest, nodes, total, p, shared, row_mean, weight, unmasked)


def on_the_way(scores: Scores, nodes: list[Node], of: str = "") -> Any:
    """A(l) + a(n) as a function of node and leaf, of all terms or of those `unmasked_`."""
    columns = (getattr(scores, f"{of}leaf_advantage"), getattr(scores, f"{of}node_advantage"))
    of_leaf, own = (
        {} if column is None else dict(zip(map(id, nodes), column.tolist(), strict=True)) for column in columns
    )
    return lambda node, leaf: of_leaf.get(id(leaf), 0.0) + own.get(id(node), 0.0)


def own_weight(scores: Scores, nodes: list[Node]) -> Any:
    if scores.weight is None:
        return None
    weights = dict(zip(map(id, nodes), scores.weight.tolist(), strict=True))
    return lambda node: weights[id(node)]


def or_none(column: Any) -> list[int | None]:
    return [None if index == NO_PARENT else index for index in column.tolist()]


def spans(starts: Any) -> list[tuple[int, int]]:
    return list(pairwise(starts.tolist()))


def assert_same_layout(ours: Layout, theirs: reference_layout.Layout) -> None:
    vertices = theirs.vertices
    assert ours.token_ids.tolist() == [vertex.token for vertex in vertices]
    assert ours.positions.tolist() == [vertex.position for vertex in vertices]
    assert or_none(ours.parent_token) == [vertex.parent and vertex.parent.index for vertex in vertices]
    assert ours.subtree_end.tolist() == [vertex.end for vertex in vertices]
    assert ours.run_start.tolist() == [*reference_layout.run_starts(theirs), len(vertices)]
    assert ours.path_tokens.tolist() == theirs.path_tokens
    assert ours.num_targets == sum(len(turn.targets) for turn in theirs.turns)
    assert ours.weighted_tokens == pytest.approx(sum(turn.weight * len(turn.targets) for turn in theirs.turns))


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS)
def test_a_layout_is_the_depth_first_order_of_a_trie(forest: list[Tree], options: dict[str, Any]) -> None:
    core, scores, nodes = scored(forest, options["estimator"], options["seed"])
    p, shared, row_mean = options["p"], options["shared"], options["row_mean"]
    theirs = reference_of(forest, scores, nodes, p, shared, row_mean)
    assert_same_layout(core.pack(scores, p, shared=shared, row_mean=row_mean), theirs)


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, max_tokens=MAX_TOKENS)
def test_micro_batches_agree_with_the_reference(forest: list[Tree], options: dict[str, Any], max_tokens: int) -> None:
    core, scores, nodes = scored(forest, options["estimator"], options["seed"])
    p, shared, row_mean = options["p"], options["shared"], options["row_mean"]
    theirs = reference_of(forest, scores, nodes, p, shared, row_mean)
    ranges = reference_layout.micro_batch_ranges(theirs, max_tokens)
    micro_batches = core.pack(scores, p, shared=shared, row_mean=row_mean).micro_batches(max_tokens)
    assert len(micro_batches) == len(ranges)
    for ours, owned in zip(micro_batches, ranges, strict=True):
        expected = reference_layout.micro_batch(theirs, *owned)
        for name in ("gain", "penalty", "weights", "gain_weights", "penalty_weights"):
            assert getattr(ours, name).tolist() == pytest.approx(expected.pop(name), rel=1e-12, abs=1e-12)
        assert or_none(ours.parent_token) == expected.pop("parent_token")
        assert ours.num_context == expected.pop("num_context")
        assert (None if ours.row is None else ours.row.tolist()) == expected.pop("row")
        assert {name: getattr(ours, name).tolist() for name in expected} == expected


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, max_tokens=MAX_TOKENS)
def test_runs_and_segments_show_a_token_its_path_and_nothing_else(
    forest: list[Tree], options: dict[str, Any], max_tokens: int
) -> None:
    for micro in packed(forest, **options).micro_batches(max_tokens):
        num = len(micro.token_ids)
        seen = np.zeros((num, num), dtype=int)
        for start, end in spans(micro.run_start):
            seen[start:end, start:end] += np.tri(end - start, dtype=int)
        for keys, query in zip(segments(micro), spans_of(micro.query_start, micro.query_end), strict=True):
            seen[slice(*query), slice(*keys)] += 1
        tokens = {"token_ids": micro.token_ids, "parent_token": or_none(micro.parent_token)}
        np.testing.assert_array_equal(seen, np.array(reference_layout.visible(tokens), dtype=int))


def spans_of(starts: Any, ends: Any) -> list[tuple[int, int]]:
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def segments(micro: MicroBatch) -> list[tuple[int, int]]:
    return spans_of(micro.key_start, micro.key_end)


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, max_tokens=MAX_TOKENS)
def test_runs_and_segments_are_as_few_as_can_be(forest: list[Tree], options: dict[str, Any], max_tokens: int) -> None:
    for micro in packed(forest, **options).micro_batches(max_tokens):
        parent, end = micro.parent_token.tolist(), micro.subtree_end.tolist()
        assert all(parent[start] != start - 1 for start, _ in spans(micro.run_start)[1:])
        expected = []
        for start, behind in spans(micro.run_start):
            below = sorted({end[token] for token in range(start, behind) if end[token] > behind}, reverse=True)
            for until in below:
                keys = [token for token in range(start, behind) if end[token] == until]
                expected.append((keys[0], keys[-1] + 1, behind, until))
        columns = (micro.key_start, micro.key_end, micro.query_start, micro.query_end)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, max_tokens=MAX_TOKENS)
def test_an_edge_is_maximal_without_a_branch(forest: list[Tree], options: dict[str, Any], max_tokens: int) -> None:
    for micro in packed(forest, **options).micro_batches(max_tokens):
        parent, edges = or_none(micro.parent_token), spans(micro.edge_start)
        num_children = Counter(parent)
        above = or_none(micro.edge_parent)
        assert edges[0][0] == 0
        assert edges[-1][1] == len(parent)
        for number, (start, end) in enumerate(edges):
            assert parent[start + 1 : end] == list(range(start, end - 1))
            assert all(num_children[token] == 1 for token in range(start, end - 1))
            if parent[start] is None:
                assert above[number] is None
            else:
                assert num_children[parent[start]] > 1
                assert edges[above[number]][1] == parent[start] + 1


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, max_tokens=MAX_TOKENS)
def test_every_target_is_in_exactly_one_micro_batch(
    forest: list[Tree], options: dict[str, Any], max_tokens: int
) -> None:
    layout = packed(forest, **options)
    cut, whole = layout.micro_batches(max_tokens), layout.micro_batches(10**6)
    assert sum(len(micro.target_ids) for micro in cut) == layout.num_targets
    assert sum(micro.weights.sum() for micro in cut) == pytest.approx(layout.weighted_tokens)
    assert sum((targets_of(micro) for micro in cut), Counter()) == sum(
        (targets_of(micro) for micro in whole), Counter()
    )


def targets_of(micro: MicroBatch) -> Counter[Any]:
    """Each target with the tokens that it is predicted from."""
    token_ids, parent = micro.token_ids.tolist(), or_none(micro.parent_token)

    def path(token: int | None) -> tuple[int, ...]:
        return () if token is None else (*path(parent[token]), token_ids[token])

    columns = (micro.target_ids, micro.logprobs, micro.gain, micro.penalty, micro.weights)
    targets = zip(*(column.tolist() for column in columns), strict=True)
    predictors = micro.predictors[micro.target_row].tolist()
    return Counter((path(predictor), *target) for predictor, target in zip(predictors, targets, strict=True))


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS)
def test_rows_and_shared_prefixes_give_each_target_the_same_credit(forest: list[Tree], options: dict[str, Any]) -> None:
    totals = []
    for shared in (True, False):
        total: dict[Any, Any] = {}
        for micro in packed(forest, **options | {"shared": shared}).micro_batches(1000):
            for (path, token, logprob, *credit), count in targets_of(micro).items():
                key = (path, token, logprob)
                total[key] = total.get(key, 0) + count * np.array(credit)
        totals.append(total)
    assert totals[0].keys() == totals[1].keys()
    for key, credit in totals[0].items():
        np.testing.assert_allclose(credit, totals[1][key], rtol=1e-9, atol=1e-12)


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, max_tokens=MAX_TOKENS)
def test_a_micro_batch_keeps_to_its_tokens_where_it_can(
    forest: list[Tree], options: dict[str, Any], max_tokens: int
) -> None:
    for micro in packed(forest, **options).micro_batches(max_tokens):
        num = len(micro.token_ids)
        if options["shared"]:
            assert num <= max_tokens or len(micro.run_start) == 2
        else:
            lengths = np.diff(micro.run_start)
            assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
            assert lengths[0] * len(lengths) <= max_tokens or len(lengths) == 1


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, max_tokens=MAX_TOKENS)
def test_a_tree_that_fits_stays_whole(forest: list[Tree], options: dict[str, Any], max_tokens: int) -> None:
    layout = packed(forest, **options)
    owned = [len(micro.token_ids) - micro.num_context for micro in layout.micro_batches(max_tokens)]
    assert sum(owned) == len(layout.token_ids)
    cuts = set(np.cumsum(owned).tolist())
    for start in np.flatnonzero(layout.parent_token == NO_PARENT).tolist():
        end = int(layout.subtree_end[start])
        if end - start <= max_tokens:
            assert not cuts & set(range(start + 1, end))


@EXAMPLES
@given(forest=FORESTS, options=SETTINGS, prompts=st.lists(st.integers(0, 4), max_size=3))
def test_prompts_choose_their_trees_and_an_unknown_one_adds_nothing(
    forest: list[Tree], options: dict[str, Any], prompts: list[int]
) -> None:
    core, scores, nodes = scored(forest, options["estimator"], options["seed"])
    chosen = [tree for tree in forest if tree["prompt"] in prompts]
    members = {id(node) for tree in chosen for node in reference.walk(tree["root"])}
    order = [number for number, node in enumerate(nodes) if id(node) in members]
    p, shared = options["p"], options["shared"]
    theirs = reference_layout.layout(chosen, [nodes[number] for number in order], on_the_way(scores, nodes), p, shared)
    ours = core.pack(scores, p, shared=shared, prompts=np.array(prompts, dtype=np.uint32))
    assert_same_layout(ours, theirs)


@EXAMPLES
@given(forest=FORESTS, shared=st.booleans(), seed=st.integers(0, 9), sums=st.booleans())
def test_a_weight_of_a_nodes_own_stands_in_place_of_its_number_of_leaves(
    forest: list[Tree], shared: bool, seed: int, sums: bool
) -> None:
    core, nodes = forest_of(forest, random.Random(seed))
    draw = np.random.default_rng(seed)
    advantage, beside, weight = draw.normal(size=(3, len(nodes)))
    scores = core.given_scores(advantage, leaf_level=False, beside=beside if sums else None, weight=abs(weight))
    theirs = reference_of(forest, scores, nodes, 1.0, shared, row_mean=False)
    ours = core.pack(scores, shared=shared)
    assert_same_layout(ours, theirs)
    for micro, owned in zip(ours.micro_batches(9), reference_layout.micro_batch_ranges(theirs, 9), strict=True):
        expected = reference_layout.micro_batch(theirs, *owned)
        for name in ("gain", "penalty", "weights", "gain_weights", "penalty_weights"):
            assert getattr(micro, name).tolist() == pytest.approx(expected[name], rel=1e-12, abs=1e-12)


def test_a_weight_of_a_nodes_own_goes_with_no_other_way_to_weigh() -> None:
    core, nodes = forest_of(forked())
    scores = core.given_scores(np.zeros(len(nodes)), leaf_level=False, weight=np.ones(len(nodes)), estimator="mine")
    with pytest.raises(CoreError, match=r"^mine weighs turns itself: it goes with prefix_weight 1 alone$"):
        core.pack(scores, 0.5)
    with pytest.raises(CoreError, match=r"^mine weighs turns itself: it goes with row_mean false alone$"):
        core.pack(scores, row_mean=True)
    with pytest.raises(CoreError, match="prefix_weight 1 alone"):
        core.chain_rows(scores, 0.0)
    for wrong in (-1.0, np.inf):
        with pytest.raises(CoreError, match=r"tree 0, node 1: weight .* is no finite number, 0 or more"):
            core.given_scores(np.zeros(len(nodes)), leaf_level=False, weight=np.array([1, wrong, 1, 1]))


def tokens(*token_ids: int, sampled: int = 0) -> list[tuple[int, bool, float]]:
    """The first `sampled` of these tokens are the policy's."""
    return [(token, place < sampled, -0.5 * (place < sampled)) for place, token in enumerate(token_ids)]


def forked() -> list[Tree]:
    """A prompt (1 2), one turn (3 4) below, and two ends of it that begin alike: (5 6), right, and (5 7), wrong."""
    right, wrong = make_node(reward=1.0), make_node(reward=0.0)
    turn = make_node([right, wrong])
    root = make_node([turn])
    root["tokens"], turn["tokens"] = tokens(1, 2), tokens(3, 4, sampled=1)
    right["tokens"], wrong["tokens"] = tokens(5, 6, sampled=2), tokens(5, 7, sampled=2)
    return [{"prompt": 0, "root": root}]


def test_a_small_tree_by_hand() -> None:
    core, _ = forest_of(forked())
    layout = core.pack(core.score("grpo", {"scale": "none"}), 0.0)  # A = +0.5 and -0.5
    assert layout.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 5, 5]
    assert or_none(layout.parent_token) == [None, 0, 1, 2, 3, 4, 4]
    assert layout.subtree_end.tolist() == [7, 7, 7, 7, 7, 6, 7]
    assert layout.run_start.tolist() == [0, 6, 7]
    assert layout.path_tokens.tolist() == [6, 6]
    assert (layout.num_targets, layout.weighted_tokens) == (5, 5.0)

    [micro] = layout.micro_batches(7)
    assert segments(micro) == [(0, 5)]
    assert spans_of(micro.query_start, micro.query_end) == [(6, 7)]
    assert (spans(micro.edge_start), or_none(micro.edge_parent)) == ([(0, 5), (5, 6), (6, 7)], [None, 0, 0])
    assert micro.predictors.tolist() == [1, 3, 4]
    assert micro.target_row.tolist() == [0, 1, 1, 2, 2]
    assert micro.target_ids.tolist() == [3, 5, 5, 6, 7]
    assert micro.turn.tolist() == [0, 1, 2, 1, 2]
    assert micro.gain.tolist() == [0.25, 0.5, 0.0, 0.5, 0.0]
    assert micro.penalty.tolist() == [-0.25, 0.0, -0.5, 0.0, -0.5]
    assert micro.weights.tolist() == [1.0] * 5
    assert micro.row is None

    first, second = layout.micro_batches(6)
    assert (first.num_context, first.token_ids.tolist()) == (0, [1, 2, 3, 4, 5, 6])
    assert (second.num_context, second.token_ids.tolist()) == (5, [1, 2, 3, 4, 5, 7])
    assert (first.target_ids.tolist(), second.target_ids.tolist()) == ([3, 5, 6], [5, 7])


def test_a_tree_waits_for_a_micro_batch_that_holds_all_of_it() -> None:
    first = make_node([make_node(reward=1.0)])
    first["tokens"] = tokens(9, 9, 9)
    core, _ = forest_of([{"prompt": 0, "root": first}, *forked()])
    layout = core.pack(core.score("grpo", {}))
    cuts = {max_tokens: [len(micro.token_ids) for micro in layout.micro_batches(max_tokens)] for max_tokens in (9, 10)}
    assert cuts == {9: [3, 7], 10: [10]}  # the first run of the second tree, 6 tokens, would fit into 9


def test_a_token_sampled_without_one_in_front_is_not_trained() -> None:
    leaf = make_node(reward=1.0)
    leaf["tokens"] = tokens(1, 2, sampled=2)
    layout = packed([{"prompt": 0, "root": make_node([leaf])}], estimator="grpo", p=1.0, shared=True, seed=0)
    [micro] = layout.micro_batches(10)
    assert (micro.predictors.tolist(), micro.target_ids.tolist()) == ([0], [2])


@pytest.mark.parametrize("shared", [True, False])
def test_a_forest_without_scored_leaves_has_no_micro_batches(shared: bool) -> None:
    root = make_node([make_node()])
    root["tokens"] = tokens(1, 2)
    layout = packed([{"prompt": 0, "root": root}], estimator="grpo", p=1.0, shared=shared, seed=0)
    assert layout.micro_batches(10) == []
    assert (layout.num_targets, layout.weighted_tokens) == (0, 0.0)
    assert layout.run_start.tolist() == [0]


def test_a_star_of_many_leaves_is_laid_out_at_once() -> None:
    """Quadratic in the leaves, this would take minutes."""
    num = 200_000
    forest = Forest()
    root = forest.add_tree(0, np.array([0], dtype=np.uint32))
    for number in range(num):
        token = np.array([number], dtype=np.uint32)
        forest.add_node(root, token, np.ones(1, bool), np.zeros(1, np.float32), NodeStatus.DONE, 0)
        forest.set_reward(number + 1, number % 2)
    layout = forest.pack(forest.score("grpo", {}))
    assert layout.token_ids.tolist() == [0, *range(num)]
    [micro] = layout.micro_batches(num + 1)
    assert micro.predictors.tolist() == [0]
    assert len(micro.edge_parent) == num + 1


def test_a_path_of_many_turns_is_one_run() -> None:
    """A recursion would end here."""
    num = 200_000
    forest = Forest()
    node = forest.add_tree(0, np.zeros(1, np.uint32))
    for number in range(num):
        status = NodeStatus.DONE if number == num - 1 else NodeStatus.OPEN
        node = forest.add_node(node, np.zeros(1, np.uint32), np.ones(1, bool), np.zeros(1, np.float32), status, 0)
    forest.set_reward(node, 1.0)
    layout = forest.pack(forest.score("grpo", {}))
    assert layout.run_start.tolist() == [0, num + 1]
    [micro] = layout.micro_batches(1)
    assert micro.turn.tolist() == list(range(num))


def test_more_tokens_in_rows_than_can_be_numbered_are_refused_before_they_are_made() -> None:
    """A path of 100,000 nodes, each with a leaf of its own: 5 * 10**9 tokens as rows, 2 * 10**5 in a tree."""
    depth = 100_000
    inner, leaves = np.arange(depth, dtype=np.uint32), np.arange(depth, dtype=np.uint32)
    forest = Forest.from_columns(
        prompt=np.zeros(1, np.uint32),
        parent=np.concatenate([inner - np.uint32(1), leaves]),
        tree=np.zeros(2 * depth, np.uint32),
        status=np.repeat([NodeStatus.OPEN, NodeStatus.DONE], depth).astype(np.uint8),
        reward=np.concatenate([np.full(depth, np.nan), leaves % 2]),
        token_start=np.arange(2 * depth + 1, dtype=np.uint64),
        token_ids=np.concatenate([inner, leaves]),
    )
    scores = forest.score("parent", {})
    for call in (lambda: forest.chain_rows(scores), lambda: forest.pack(scores, shared=False)):
        with pytest.raises(CoreError, match=r"more than 4294967295 tokens in (rows|a layout)"):
            call()
    assert len(forest.pack(scores).token_ids) <= 2 * depth


def test_wrong_arguments_are_named() -> None:
    core, _ = forest_of(forked())
    scores = core.score("grpo", {})
    other = Forest()
    other.add_tree(0, np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="scores are of another forest"):
        other.pack(scores)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"prefix_weight: got .*, expected a finite number, 0 or more"):
            core.pack(scores, weight)
    with pytest.raises(ValueError, match="max_tokens: got 0, expected 1 or more"):
        core.pack(scores).micro_batches(0)


def test_a_layouts_columns_are_read_only_and_outlive_it() -> None:
    core, _ = forest_of(forked())
    token_ids = core.pack(core.score("grpo", {})).token_ids
    assert token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="read-only"):
        token_ids[0] = 9
