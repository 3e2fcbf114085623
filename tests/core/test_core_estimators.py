"""The core's values, advantages and rows agree with the slow reference and with the published vectors."""

import math
import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import (
    CoreError,
    Forest,
    describe_estimators,
    estimator_options,
    estimators,
    resolve_options,
)

from tests import reference
from tests.forests import ESTIMATORS, forest_of, leaf_options, make_node, scorings, trees
from tests.reference import Node, Tree

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm


def close(value: float | None, rel: float = 1e-6, abs: float = 1e-7) -> Any:
    """`pytest.approx`, for null too."""
    return None if value is None else pytest.approx(value, rel=rel, abs=abs)


def null(value: float) -> float | None:
    return None if math.isnan(value) else value


def term(estimator: str, weight: float, options: dict[str, Any]) -> "ScoreTerm":
    return {"estimator": estimator, "weight": weight, "options": options}


def spread_is_clear(forest: list[Tree]) -> bool:
    """No two rewards so close that rounding decides whether a group is flat."""
    rewards = sorted({leaf["reward"] for tree in forest for leaf in reference.scored_leaves(tree["root"])})
    return all(b - a > 1e-4 for a, b in pairwise(rewards))


@settings(max_examples=600, deadline=None)
@given(forest=trees(), scoring=scorings(), seed=st.integers(0, 9))
def test_every_estimator_agrees_with_the_reference(
    forest: list[Tree], scoring: tuple[str, dict[str, Any]], seed: int
) -> None:
    assume(spread_is_clear(forest))
    estimator, options = scoring
    core, nodes = forest_of(forest, random.Random(seed))
    expected = reference.score(forest, estimator, options)
    scores = core.score(estimator, options)
    assert scores.options == options
    for row, node in enumerate(nodes):
        ours = expected[id(node)]
        assert (scores.depth[row], scores.num_leaves[row]) == (ours["depth"], ours["num_leaves"])
        assert null(scores.value[row]) == close(ours["value"], rel=1e-9, abs=1e-9)
        assert null(scores.advantage[row]) == close(ours["advantage"])
        if scores.leaf_advantage is not None:
            assert null(scores.leaf_advantage[row]) == close(ours["leaf_advantage"])


MASKS: Any = st.sampled_from([{}, {"mask": "tool-calls"}])


@settings(max_examples=200, deadline=None)
@given(
    forest=trees(),
    terms=st.lists(st.tuples(scorings(), st.sampled_from([0.0, 0.5, 1.0, 3.0]), MASKS), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_a_sum_agrees_with_the_reference(
    forest: list[Tree], terms: list[tuple[tuple[str, dict[str, Any]], float, Any]], seed: int
) -> None:
    assume(spread_is_clear(forest))
    summed = [term(estimator, weight, options) | mask for (estimator, options), weight, mask in terms]
    core, nodes = forest_of(forest, random.Random(seed))
    expected, scores = reference.score_terms(forest, summed), core.score(summed)
    assert scores.terms == summed
    for row, node in enumerate(nodes):
        ours = expected[id(node)]
        assert null(scores.value[row]) == close(ours["value"], rel=1e-9, abs=1e-9)
        names = ["advantage", "leaf_advantage", "node_advantage"]
        if any("mask" in term for term in summed):
            names += ["unmasked_leaf_advantage", "unmasked_node_advantage"]
        for name in names:
            column = getattr(scores, name)
            assert (None if column is None else null(column[row])) == close(ours[name])


@settings(max_examples=150, deadline=None)
@given(
    forest=trees(vocabulary=2),
    norm=leaf_options("grpo"),
    weight=st.sampled_from([0.5, 1.0]),
    discount=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
    keys=st.randoms(use_true_random=False),
)
def test_anchor_compares_turns_that_were_taken_in_an_equal_state(
    forest: list[Tree], norm: dict[str, Any], weight: float, discount: float, seed: int, keys: Any
) -> None:
    options = norm | {"weight": weight, "discount": discount}
    for tree in forest:
        for node in reference.walk(tree["root"])[1:]:
            node["state_key"] = keys.choice([0, 1, 2**64 - 1])
    core, nodes = forest_of(forest, random.Random(seed))
    assume(spread_is_clear(forest) and (discount == 1 or norm["scale"] != "std"))
    scores, own = core.score("anchor", options), dict[int, float]()
    of_leaf = reference.score(forest, "grpo", norm)
    for prompt in {tree["prompt"] for tree in forest}:
        own |= reference.anchored([tree for tree in forest if tree["prompt"] == prompt], options)
    assert scores.node_advantage is not None
    assert scores.leaf_advantage is not None
    roots = {id(tree["root"]) for tree in forest}
    for row, node in enumerate(nodes):
        if reference.scored_leaves(node) and id(node) not in roots:
            assert scores.node_advantage[row] == close(own[id(node)])
        assert null(scores.leaf_advantage[row]) == close(of_leaf[id(node)]["leaf_advantage"])


def test_a_sum_without_meaning_is_refused() -> None:
    core, _ = forest_of([second()])
    with pytest.raises(CoreError, match=r"^a sum of estimators needs at least one term$"):
        core.score([])
    with pytest.raises(CoreError, match=r"^option weight: got -1, expected a finite number, 0 or more$"):
        core.score([term("grpo", -1.0, {})])
    with pytest.raises(CoreError, match=r"^unknown estimator 'gppo'; did you mean 'grpo'"):
        core.score([{"estimator": "gppo"}])
    with pytest.raises(CoreError, match=r"^unknown mask 'tool-call'; did you mean 'tool-calls'"):
        core.score([{"estimator": "grpo", "mask": "tool-call"}])
    with pytest.raises(CoreError, match=r"^unknown key of a term 'maks'; did you mean 'mask'"):
        core.score([{"estimator": "grpo", "maks": "tool-calls"}])  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match=r"^options stand in their term$"):
        core.score([{"estimator": "grpo"}], {"eps": 0})


@settings(max_examples=200, deadline=None)
@given(
    forest=trees(),
    seed=st.integers(0, 9),
    estimators=st.sampled_from([["grpo"], ["parent"], ["tree-grpo", "parent", "sibling"]]),
    masks=st.lists(MASKS, min_size=3, max_size=3),
    p=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_rows_agree_with_the_reference(
    forest: list[Tree], seed: int, estimators: list[str], masks: list[Any], p: float
) -> None:
    assume(spread_is_clear(forest))
    terms = [term(estimator, 1 / place, estimator_options(estimator)) for place, estimator in enumerate(estimators, 1)]
    terms = [term | mask for term, mask in zip(terms, masks, strict=False)]
    core, nodes = forest_of(forest, random.Random(seed))
    rows = core.chain_rows(core.score(terms), p)
    expected = reference.chain_rows(forest, reference.score_terms(forest, terms), p)
    scored = [row for row, node in enumerate(nodes) if node["reward"] is not None]
    assert rows.leaf.tolist() == scored
    prompts = {id(node): tree["prompt"] for tree in forest for node in reference.walk(tree["root"])}
    assert rows.group.tolist() == [prompts[id(nodes[leaf])] for leaf in scored]
    for number, leaf in enumerate(scored):
        span = slice(int(rows.row_start[number]), int(rows.row_start[number + 1]))
        ours = expected[id(nodes[leaf])]
        assert rows.input_ids[span].tolist() == [token for token, *_ in ours]
        assert rows.loss_mask[span].tolist() == [sampled for _, sampled, *_ in ours]
        assert rows.logprobs[span].tolist() == [logprob for _, _, logprob, *_ in ours]
        assert rows.advantages[span].tolist() == pytest.approx([a for *_, a, _ in ours], rel=1e-5, abs=1e-6)
        assert rows.weights[span].tolist() == pytest.approx([w for *_, w in ours], rel=1e-6)


def test_reference_vector_forest_is_the_published_one() -> None:
    assert [leaf["reward"] for leaf in reference.scored_leaves(published()["root"])] == [1, 0, 1, 1, 0, 0]


NAMES = ["r", "A", "B", "C", "A1", "A2", "B1", "B1a", "B1b", "B1c"]


def published() -> Tree:
    """root -> A, B, C; A -> A1 (1), A2 (0); B -> B1 -> B1a (1), B1b (1), B1c (0); C a leaf (0)."""
    a = make_node([make_node(reward=1.0), make_node(reward=0.0)])
    b = make_node([make_node([make_node(reward=1.0), make_node(reward=1.0), make_node(reward=0.0)])])
    return {"prompt": 0, "root": make_node([a, b, make_node(reward=0.0)])}


def second() -> Tree:
    """root -> D (0), E (1)."""
    return {"prompt": 0, "root": make_node([make_node(reward=0.0), make_node(reward=1.0)])}


def shown(forest: list[Tree], estimator: str, column: str = "advantage", **options: Any) -> dict[str, float]:
    core, nodes = forest_of(forest)
    exact = {"eps": 0.0} if "eps" in estimator_options(estimator) else {}
    column_of = getattr(core.score(estimator, exact | options), column)
    names: dict[int, str] = {}
    root = forest[0]["root"]
    first, middle, last = root["children"]
    below = [*first["children"], middle["children"][0], *middle["children"][0]["children"]]
    for name, node in zip(NAMES, [root, first, middle, last, *below], strict=True):
        names[id(node)] = name
    if len(forest) > 1:
        for name, node in zip("sDE", [forest[1]["root"], *forest[1]["root"]["children"]], strict=True):
            names[id(node)] = name
    return {names[id(node)]: float(column_of[row]) for row, node in enumerate(nodes)}


def check(actual: dict[str, float], **expected: float) -> None:
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_published_values() -> None:
    check(shown([published()], "parent", "value"), r=0.5, A=0.5, B=0.666667, B1=0.666667, C=0)
    check(shown([published()], "parent", "value", value="child-mean"), r=0.388889, A=0.5, B=0.666667, B1=0.666667, C=0)


def test_published_grpo() -> None:
    check(
        shown([published()], "grpo"), A1=0.912871, A2=-0.912871, B1a=0.912871, B1b=0.912871, B1c=-0.912871, C=-0.912871
    )


def test_published_parent() -> None:
    below = {"B1": 0, "A1": 0.5, "A2": -0.5, "B1a": 0.333333, "B1b": 0.333333, "B1c": -0.666667}
    check(shown([published()], "parent"), A=0, B=0.166667, C=-0.5, **below)
    check(shown([published()], "parent", value="child-mean"), A=0.111111, B=0.277778, C=-0.388889, **below)


def test_published_sibling() -> None:
    check(
        shown([published()], "sibling", center="loo", value="child-mean"),
        **{"A": 0.166667, "B": 0.416667, "C": -0.583333, "B1": 0, "A1": 1, "A2": -1, "B1a": 0.5, "B1b": 0.5, "B1c": -1},
    )
    check(
        shown([published()], "sibling", scale="std", ddof=0),
        **{"A": 0.392232, "B": 0.980581, "C": -1.372813, "A1": 1, "A2": -1, "B1a": 0.707107, "B1c": -1.414214},
    )
    check(
        shown([published()], "sibling", scale="std", ddof=1),
        **{"A": 0.320256, "B": 0.800641, "C": -1.120897, "B1a": 0.577350, "B1c": -1.154701},
    )
    check(
        shown([published()], "sibling", scale="bernoulli"),
        **{"A": 0.227921, "B": 0.569803, "C": -0.797724, "A1": 1, "B1a": 0.707107, "B1c": -1.414214},
    )


def test_published_redistribute() -> None:
    plain = shown([published()], "redistribute", scale="none")
    check(plain, A=0, B=0.166667, B1=0.166667, A1=0.5, A2=-0.5, B1a=0.5, B1c=-0.5, C=-0.5)
    check(shown([published()], "redistribute"), A=0, B=0.304290, B1=0.304290)


def test_published_global_local() -> None:
    check(
        shown([published()], "global-local"),
        **{"A": 0, "B": 0.192450, "B1": 0.096225, "C": -1, "A1": 1, "A2": -1, "B1a": 0.833333, "B1c": -1.166667},
    )


def test_published_ancestor() -> None:
    check(shown([published()], "ancestor"), A1=0.5, A2=-0.5, B1a=0.388889, B1c=-0.611111, C=-0.5)
    check(shown([published()], "ancestor", weight="leaves"), B1a=0.416667, B1c=-0.583333)


def test_published_depth() -> None:
    check(
        shown([published()], "depth"),
        **{"A": 0.320256, "B": 0.800641, "C": -1.120897, "A1": 0.872872, "A2": -1.091089, "B1": 0.218218},
        **{"B1a": 0.577350, "B1c": -1.154701},
    )


def test_published_tree_grpo_of_two_trees() -> None:
    two = [published(), second()]
    check(shown(two, "tree-grpo"), A1=1.848285, B1c=-1.848285, D=-1.642521, E=1.642521)
    check(shown(two, "tree-grpo", eps=1e-6), A1=1.848282, B1c=-1.848282, D=-1.642518, E=1.642518)


def test_published_shared_roots() -> None:
    two = [published(), second()]
    check(shown(two, "parent", "value"), r=0.5, s=0.5)
    check(shown(two, "parent"), A=0, B=0.166667, C=-0.5, D=-0.5, E=0.5)
    check(shown(two, "sibling"), A=0.066667, B=0.233333, C=-0.433333, D=-0.433333, E=0.566667)


def scored_nodes(forest: list[Tree]) -> list[tuple[Node, list[Node]]]:
    """Nodes with a value and their children with one."""
    nodes = [node for tree in forest for node in reference.walk(tree["root"]) if reference.scored_leaves(node)]
    return [(node, [child for child in node["children"] if reference.scored_leaves(child)]) for node in nodes]


def by_node(forest: list[Tree], estimator: str, column: str = "advantage", **options: Any) -> dict[int, float]:
    core, nodes = forest_of(forest)
    values = getattr(core.score(estimator, options), column)
    return {id(node): float(values[row]) for row, node in enumerate(nodes)}


@settings(max_examples=150, deadline=None)
@given(forest=trees())
def test_parent_advantages_of_a_path_add_up_to_the_leafs_surprise(forest: list[Tree]) -> None:
    advantage, value = by_node(forest, "parent"), by_node(forest, "parent", "value")

    def visit(node: Node, root: Node, total: float) -> None:
        total += advantage[id(node)]
        if node["reward"] is not None:
            assert total == pytest.approx(node["reward"] - value[id(root)], abs=1e-9)
        for child in node["children"]:
            visit(child, root, total)

    for tree in forest:
        visit(tree["root"], tree["root"], 0.0)


@settings(max_examples=150, deadline=None)
@given(forest=trees())
def test_parent_advantages_of_children_cancel(forest: list[Tree]) -> None:
    child_mean = by_node(forest, "parent", value="child-mean", roots="tree")
    leaf_mean = by_node(forest, "parent", roots="tree")
    for _, children in scored_nodes(forest):
        assert sum(child_mean[id(child)] for child in children) == pytest.approx(0, abs=1e-9)
        weighted = sum(len(reference.scored_leaves(child)) * leaf_mean[id(child)] for child in children)
        assert weighted == pytest.approx(0, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(forest=trees())
def test_leave_one_out_among_siblings_magnifies_the_parent_difference(forest: list[Tree]) -> None:
    sibling = by_node(forest, "sibling", center="loo", value="child-mean", roots="tree")
    parent = by_node(forest, "parent", value="child-mean", roots="tree")
    for _, children in scored_nodes(forest):
        k = len(children)
        for child in children:
            expected = k / (k - 1) * parent[id(child)] if k > 1 else 0.0
            assert sibling[id(child)] == pytest.approx(expected, abs=1e-7)


@settings(max_examples=100, deadline=None)
@given(forest=trees(), base=st.sampled_from(["grpo", "tree-grpo"]), scale=st.sampled_from(["none", "std"]))
def test_what_is_redistributed_adds_up_to_what_the_leaves_have(forest: list[Tree], base: str, scale: str) -> None:
    assume(spread_is_clear(forest))
    whole, of_leaf = by_node(forest, "redistribute", base=base, scale=scale), by_node(forest, base, scale=scale)
    roots = {id(tree["root"]) for tree in forest}
    for node, _ in scored_nodes(forest):
        leaves = reference.scored_leaves(node)
        if id(node) not in roots:
            total = sum(of_leaf[id(leaf)] for leaf in leaves)
            assert len(leaves) * whole[id(node)] == pytest.approx(total, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(forest=trees(), g=st.sampled_from([0.0, 1.0]), h=st.sampled_from([0.0, 0.5]))
def test_global_local_without_a_power_is_the_sum_of_its_parts(forest: list[Tree], g: float, h: float) -> None:
    both = by_node(forest, "global-local", **{"global": g, "local": h, "q": 0.0})
    local, value = by_node(forest, "parent"), by_node(forest, "parent", "value")
    for tree in forest:
        for node in reference.walk(tree["root"])[1:]:
            if reference.scored_leaves(node):
                expected = g * (value[id(node)] - value[id(tree["root"])]) + h * local[id(node)]
                assert both[id(node)] == pytest.approx(expected, abs=1e-9)


def test_an_only_child_keeps_its_global_part_and_what_its_leaves_have() -> None:
    tree = {"prompt": 0, "root": make_node([make_node([make_node(reward=1.0)]), make_node(reward=0.0)])}
    link = tree["root"]["children"][0]["children"][0]
    assert by_node([tree], "global-local")[id(link)] == 0.5
    assert by_node([tree], "redistribute", scale="none")[id(link)] == 0.5
    assert by_node([tree], "parent")[id(link)] == by_node([tree], "sibling")[id(link)] == 0.0
    assert by_node([tree], "ancestor")[id(link)] == 0.5
    assert by_node([tree], "depth")[id(link)] == 0.0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_rewards_teach_nothing(estimator: str) -> None:
    forest = [published(), second()]
    alike = changed(forest, lambda _: 0.5)
    assert set(by_node(alike, estimator).values()) == {0.0}


def changed(forest: list[Tree], change: Any) -> list[Tree]:
    def copy(node: Node) -> Node:
        reward = None if node["reward"] is None else change(node["reward"])
        return {**node, "reward": reward, "children": [copy(child) for child in node["children"]]}

    return [{"prompt": tree["prompt"], "root": copy(tree["root"])} for tree in forest]


@settings(max_examples=150, deadline=None)
@given(forest=trees(), scoring=scorings(), constant=st.sampled_from([-3.0, 0.25, 10.0]))
def test_a_constant_added_to_every_reward_changes_nothing(
    forest: list[Tree], scoring: tuple[str, dict[str, Any]], constant: float
) -> None:
    estimator, options = scoring
    assume(spread_is_clear(forest) and options.get("scale") != "bernoulli" and options.get("singleton") != "raw")
    before, _ = forest_of(forest)
    after, _ = forest_of(changed(forest, lambda reward: reward + constant))
    np.testing.assert_allclose(
        before.score(estimator, options).advantage, after.score(estimator, options).advantage, rtol=1e-6, atol=1e-7
    )


@settings(max_examples=100, deadline=None)
@given(
    forest=trees(),
    estimator=st.sampled_from(["grpo", "tree-grpo", "sibling", "depth", "redistribute"]),
    factor=st.sampled_from([0.5, 4.0]),
)
def test_std_forms_do_not_change_under_positive_scaling(forest: list[Tree], estimator: str, factor: float) -> None:
    assume(spread_is_clear(forest))
    options = {"scale": "std", "eps": 0.0}
    before, _ = forest_of(forest)
    after, _ = forest_of(changed(forest, lambda reward: reward * factor))
    np.testing.assert_allclose(
        before.score(estimator, options).advantage, after.score(estimator, options).advantage, rtol=1e-6, atol=1e-7
    )


@settings(max_examples=100, deadline=None)
@given(forest=trees(), scoring=scorings())
def test_the_order_of_children_does_not_matter(forest: list[Tree], scoring: tuple[str, dict[str, Any]]) -> None:
    assume(spread_is_clear(forest))
    estimator, options = scoring
    straight, nodes = forest_of(forest)
    before = dict(zip(map(id, nodes), straight.score(estimator, options).advantage, strict=True))
    for tree in forest:
        for node in reference.walk(tree["root"]):
            node["children"].reverse()
    turned, nodes = forest_of(forest)
    for node, advantage in zip(nodes, turned.score(estimator, options).advantage, strict=True):
        assert null(advantage) == close(null(before[id(node)]))


@settings(max_examples=100, deadline=None)
@given(
    forest=trees(),
    estimator=st.sampled_from(["parent", "sibling"]),
    value=st.sampled_from(["leaf-mean", "child-mean"]),
    data=st.data(),
)
def test_an_inserted_only_child_changes_no_other_advantage(
    forest: list[Tree], estimator: str, value: str, data: st.DataObject
) -> None:
    inner = [node for tree in forest for node in reference.walk(tree["root"])[1:] if node["children"]]
    assume(inner)
    before = by_node(forest, estimator, value=value)
    node = data.draw(st.sampled_from(inner))
    node["children"] = [make_node(node["children"])]
    after = by_node(forest, estimator, value=value)
    for key, advantage in before.items():
        assert null(after[key]) == close(null(advantage))
    link = node["children"][0]
    assert null(after[id(link)]) == close(0.0 if reference.scored_leaves(link) else None)


def test_a_leaf_without_a_reward_is_left_out_of_its_group() -> None:
    tree = {"prompt": 0, "root": make_node([make_node(reward=1.0), make_node(), make_node(reward=0.0)])}
    advantage = by_node([tree], "sibling")
    assert [null(advantage[id(child)]) for child in tree["root"]["children"]] == [0.5, None, -0.5]


def test_a_group_whose_spread_is_rounding_gets_exactly_zero() -> None:
    tree = {"prompt": 0, "root": make_node([make_node(reward=0.1 + 0.2), make_node(reward=0.3)])}
    for estimator in ("grpo", "tree-grpo", "sibling"):
        scores = by_node([tree], estimator, scale="std", eps=0.0)
        assert set(scores.values()) == {0.0}


def test_a_single_leaf_gets_zero_or_its_raw_reward() -> None:
    tree = {"prompt": 0, "root": make_node([make_node(reward=0.7)])}
    [leaf] = tree["root"]["children"]
    assert by_node([tree], "grpo")[id(leaf)] == 0.0
    assert by_node([tree], "grpo", singleton="raw")[id(leaf)] == 0.7


def test_zero_is_never_negative_zero() -> None:
    tree = {"prompt": 0, "root": make_node([make_node([make_node(reward=0.0)]), make_node(reward=1.0)])}
    for estimator in ESTIMATORS:
        scale = {"scale": "std"} if "scale" in estimator_options(estimator) else {}
        for advantage in by_node([tree], estimator, **scale).values():
            assert math.copysign(1, advantage) == 1 or advantage != 0


@pytest.mark.parametrize("estimator", ["grpo", "tree-grpo", "sibling", "depth", "redistribute"])
def test_bernoulli_refuses_a_reward_outside_zero_and_one_and_names_it(estimator: str) -> None:
    tree = {"prompt": 0, "root": make_node([make_node(reward=1.5), make_node(reward=0.0)])}
    core, _ = forest_of([second(), tree])
    with pytest.raises(ValueError, match=r"tree 1, node 4: scale bernoulli needs values in \[0, 1\], got 1.5"):
        core.score(estimator, {"scale": "bernoulli"})


def test_child_softmax_is_refused_where_nodes_have_no_entropy() -> None:
    columns = {"prompt": [0], "parent": [2**32 - 1, 0], "tree": [0, 0], "status": [0, 1], "reward": [np.nan, 1.0]}
    kinds = {"prompt": np.uint32, "parent": np.uint32, "tree": np.uint32, "status": np.uint8, "reward": np.float64}
    core = Forest.from_columns(**{name: np.array(column, dtype=kinds[name]) for name, column in columns.items()})
    with pytest.raises(ValueError, match="node 1: value child-softmax needs an entropy"):
        core.score("parent", {"value": "child-softmax"})


DEFAULTS = {
    "grpo": {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "singleton": "zero"},
    "tree-grpo": {
        **{"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "singleton": "zero"},
        **{"variant": "sum", "inter": 1.0, "intra": 1.0},
    },
    "ancestor": {"weight": "equal"},
    "redistribute": {"base": "grpo", "center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "singleton": "zero"},
    "parent": {"roots": "shared", "value": "leaf-mean", "scale": "none", "ddof": 0, "eps": 1e-6},
    "sibling": {"roots": "shared", "value": "leaf-mean", "center": "mean", "scale": "none", "ddof": 1, "eps": 1e-6},
    "global-local": {"roots": "shared", "value": "leaf-mean", "global": 1.0, "local": 1.0, "q": 0.5},
    "depth": {"roots": "shared", "value": "leaf-mean", "center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6},
    "anchor": {
        **{"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "singleton": "zero"},
        **{"weight": 1.0, "discount": 1.0},
    },
    "causal": {"scale": "none", "ddof": 1, "eps": 1e-6, "weight": "one"},
    "state-loo": {"kappa": 3.0, "scale": "std", "ddof": 1, "eps": 1e-6, "siblings": "independent"},
}
LEAF_LEVEL = ["grpo", "tree-grpo", "ancestor"]


@pytest.mark.parametrize("estimator", DEFAULTS)
def test_defaults_are_the_documented_ones(estimator: str) -> None:
    assert estimator_options(estimator) == DEFAULTS[estimator]
    assert list(estimator_options(estimator)) == list(DEFAULTS[estimator])


def test_estimators_are_described_as_they_resolve() -> None:
    described = describe_estimators()
    assert [item["name"] for item in described] == estimators() == list(DEFAULTS)
    assert [item["name"] for item in described if item["level"] == "leaf"] == LEAF_LEVEL
    for item in described:
        assert (Forest().score(item["name"], {}).leaf_level) == (item["level"] != "node")
        always = {name: option["default"] for name, option in item["options"].items() if option["beside"] is None}
        assert always == DEFAULTS[item["name"]]
        assert "\n" not in item["formula"] + item["summary"]
        assert item["formula"].startswith(
            {"leaf": "A(l) = ", "node": "A(n) = ", "both": "A(l) + a(n) = "}[item["level"]]
        )


def test_what_an_option_may_be_is_said_and_where_it_counts() -> None:
    options = {item["name"]: item["options"] for item in describe_estimators()}
    assert options["parent"]["kappa"] == {
        "default": 1.0,
        "legal": "a finite number, 0 or more",
        "beside": "value=smoothed",
    }
    assert options["parent"]["tau"]["beside"] == "value=child-softmax"
    assert options["grpo"]["scale"]["legal"] == "std, none, bernoulli or a positive number"
    assert options["tree-grpo"]["variant"]["legal"] == "sum, intra_only, two_norm"


def test_text_from_a_command_line_reads_as_numbers() -> None:
    options = resolve_options("grpo", {"eps": "0.5", "ddof": "0", "scale": "2"})
    assert (options["eps"], options["ddof"], options["scale"]) == (0.5, 0, 2.0)


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        ("gppo", {}, "unknown estimator 'gppo'; did you mean 'grpo'? valid: grpo, tree-grpo, ancestor, redistribute"),
        ("xyz", {}, "unknown estimator 'xyz'; valid: grpo, tree-grpo, ancestor, redistribute"),
        ("grpo", {"roots": "tree"}, "grpo has no option 'roots'; it has center, scale, ddof, eps, singleton"),
        ("grpo", {"epz": 1}, "grpo has no option 'epz'; did you mean 'eps'? it has center"),
        ("parent", {"kappa": 1}, "parent has no option 'kappa'"),
        ("grpo", {"eps": math.nan}, "option eps: got NaN, expected a finite number, 0 or more"),
        ("grpo", {"eps": -1}, "option eps: got -1"),
        ("grpo", {"eps": math.inf}, "option eps: got inf"),
        ("grpo", {"eps": "small"}, "option eps: got 'small'"),
        ("grpo", {"eps": True}, "option eps: got true"),
        ("grpo", {"ddof": 2}, "option ddof: got 2, expected 0 or 1"),
        ("grpo", {"scale": 0}, "option scale: got 0"),
        ("grpo", {"scale": "-1"}, "option scale: got '-1'"),
        ("grpo", {"scale": "nan"}, "option scale: got 'nan'"),
        ("grpo", {"center": "median"}, "option center: got 'median', expected mean, loo"),
        ("tree-grpo", {"variant": 3}, "option variant: got 3, expected sum, intra_only, two_norm"),
        ("tree-grpo", {"inter": -1}, "option inter: got -1"),
        ("parent", {"scale": "bernoulli"}, "option scale: got 'bernoulli', expected none, std"),
        ("parent", {"value": "mean"}, "option value: got 'mean'"),
        ("parent", {"value": "smoothed", "kappa": -1}, "option kappa: got -1"),
        ("sibling", {"value": "child-softmax", "tau": 0}, "option tau: got 0"),
        ("sibling", {"roots": "both"}, "option roots: got 'both', expected shared, tree"),
        ("grpo", {"eps": [1]}, "option eps: expected a number, a name or a flag"),
    ],
)
def test_a_wrong_option_is_named(estimator: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared as a whole
        resolve_options(estimator, options)
    assert message in str(caught.value)
