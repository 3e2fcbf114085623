"""An explanation is the score itself, taken apart: its terms add up to the advantage."""

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import CoreError, Forest

from tests import reference
from tests.forests import forest_of, make_node, scorings, trees
from tests.reference import Tree

if TYPE_CHECKING:
    from treegrpo_cli._core import Explanation


TERMS = st.lists(
    st.builds(
        lambda scoring, weight: {"estimator": scoring[0], "weight": weight, "options": scoring[1]},
        scorings(),
        st.sampled_from([1.0, 0.5]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(forest=trees(), terms=TERMS, seed=st.integers(0, 9))
def test_the_comparisons_of_every_node_add_up_to_its_advantage(forest: list[Tree], terms: Any, seed: int) -> None:
    core, nodes = forest_of(forest, random.Random(seed))
    scores = core.score(terms)
    row_of = {id(node): row for row, node in enumerate(nodes)}
    for row, node in enumerate(nodes):
        told = scores.explain(row)
        assert told["leaf_level"] == scores.leaf_level
        assert (told["advantage"] or 0.0) == (0.0 if math.isnan(scores.advantage[row]) else scores.advantage[row])
        below, own = sums_of(told, of_leaf=True), sums_of(told, of_leaf=False)
        if any(node is tree["root"] for tree in forest) or not reference.scored_leaves(node):
            assert below == own == {}
            continue
        leaves = {row_of[id(leaf)] for leaf in reference.scored_leaves(node)}
        assert below == expected(scores.leaf_advantage, leaves)
        assert own == expected(scores.node_advantage, {row})
        total = sum(below.values()) / len(leaves) + sum(own.values())
        assert told["advantage"] == pytest.approx(total, rel=1e-12, abs=1e-12)


def expected(column: Any, nodes: set[int]) -> Any:
    return {} if column is None else pytest.approx({node: column[node] for node in nodes}, rel=1e-12, abs=1e-12)


def sums_of(told: "Explanation", *, of_leaf: bool) -> dict[int, float]:
    totals: dict[int, float] = {}
    for node, level, contribution in zip(told["nodes"], told["of_leaf"], told["contribution"], strict=True):
        if level == of_leaf:
            totals[node] = totals.get(node, 0.0) + contribution
    return totals


@settings(max_examples=150, deadline=None)
@given(forest=trees(), scoring=scorings())
def test_a_term_is_what_its_own_figures_make_of_the_raw_value(
    forest: list[Tree], scoring: tuple[str, dict[str, Any]]
) -> None:
    core, nodes = forest_of(forest)
    scores = core.score(*scoring)
    for row in range(len(nodes)):
        told = scores.explain(row)
        for part in range(len(told["nodes"])):
            factor, scale = told["factor"][part], told["scale"][part]
            measured = factor * (told["raw"][part] - told["baseline"][part]) / scale if factor else 0.0
            assert told["measured"][part] == measured
            assert told["contribution"][part] == told["weight"][part] * measured
            assert told["case"][part] in ("compared", "flat", "single")


def two_trees() -> list[Tree]:
    """Rewards 1, 0 in the first tree; 1, 1 in the second."""
    return [
        {"prompt": 0, "root": make_node([make_node([make_node(reward=a), make_node(reward=b)])])}
        for a, b in ((1.0, 0.0), (1.0, 1.0))
    ]


def test_the_two_terms_of_tree_grpo_are_those_of_the_prompt_and_of_the_tree() -> None:
    core, _ = forest_of(two_trees())
    told = core.score("tree-grpo", {"scale": "none", "inter": 2.0}).explain(4)  # reward 1 in the first tree
    assert (told["term"], told["group"], told["group_size"]) == (["inter", "intra"], ["prompt", "tree"], [4, 2])
    assert (told["raw"], told["group_mean"], told["weight"]) == ([1.0, 1.0], [0.75, 0.5], [2.0, 1.0])
    assert told["group_std"] == pytest.approx([0.5, math.sqrt(0.5)])
    assert (told["contribution"], told["advantage"]) == ([0.5, 0.5], 1.0)
    second = core.score("tree-grpo", {}).explain(7)
    assert second["case"] == ["compared", "flat"]


def test_an_inner_node_tells_of_every_leaf_that_it_averages() -> None:
    core, _ = forest_of(two_trees())
    scores = core.score("tree-grpo", {"scale": "none"})
    told = scores.explain(2)
    assert (told["nodes"], told["advantage"]) == ([4, 4, 5, 5], -0.25)
    assert told["contribution"] == [0.25, 0.5, -0.75, -0.5]


def test_two_norms_show_the_first_as_what_the_second_is_made_of() -> None:
    core, _ = forest_of(two_trees())
    told = core.score("tree-grpo", {"variant": "two_norm", "eps": 0.0}).explain(4)
    assert told["weight"] == [0.0, 1.0]
    assert told["raw"][1] == told["measured"][0]
    assert told["contribution"] == [0.0, told["advantage"]]


def test_the_baseline_of_parent_is_the_parents_value() -> None:
    core, _ = forest_of(two_trees())
    for options in ({}, {"scale": "std", "ddof": 1, "eps": 0.0}):
        scores = core.score("parent", options)
        told = scores.explain(2)  # the first turn of the first tree: value 1/2 where the prompt's is 3/4
        assert (told["raw"], told["baseline"], told["group"]) == ([0.5], [0.75], ["siblings"])
        assert (told["group_size"], told["group_mean"]) == ([2], [0.75])
        assert told["scale"] == ([1.0] if not options else pytest.approx([math.sqrt(0.125)]))


def test_what_cannot_be_explained_is_said() -> None:
    core, _ = forest_of(two_trees())
    given_scores = core.given_scores(np.zeros(8), leaf_level=False)
    with pytest.raises(CoreError, match="were given, not computed"):
        given_scores.explain(1)
    with pytest.raises(CoreError, match="no node 8: the forest has 8"):
        core.score("grpo", {}).explain(8)
    growing = Forest()
    growing.add_tree(0, np.zeros(1, np.uint32))
    scores = growing.score("grpo", {})
    growing.add_tree(0, np.zeros(1, np.uint32))
    with pytest.raises(CoreError, match="the scores are of another forest, or of this one before it changed"):
        scores.explain(0)
