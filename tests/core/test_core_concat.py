"""Trees that grew apart are joined as if they had been one forest from the first."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import CoreError, Forest

from tests.forests import columns_of, forest_of, trees
from tests.reference import Tree

EXAMPLES = settings(max_examples=150, deadline=None)
SCORING = st.sampled_from(
    [("grpo", {}), ("tree-grpo", {}), ("parent", {"value": "child-softmax"}), ("sibling", {"scale": "std"})]
)


def grown_apart(forest: list[Tree], seed: int) -> tuple[list[Forest], list[Any]]:
    """Each tree in a forest of its own, nodes in an order of arrival; and for each the depth-first order of its ids."""
    forests, orders = [], []
    for number, tree in enumerate(forest):
        arrived, nodes = forest_of([tree], random.Random(seed + number))
        place = {id(node): row for row, node in enumerate(nodes)}
        forests.append(arrived)
        orders.append(np.array([place[id(node)] for node in columns_of([tree])[1]], dtype=np.uint32))
    return forests, orders


@EXAMPLES
@given(forest=trees(vocabulary=3, shared_prompts=True), seed=st.integers(0, 9))
def test_joined_trees_are_one_forest_in_the_order_that_was_asked_for(forest: list[Tree], seed: int) -> None:
    joined = Forest.concat(*grown_apart(forest, seed))
    parts = [forest_of([tree])[0] for tree in forest]
    np.testing.assert_equal(joined.columns(), Forest.concat(parts).columns())
    starts = np.cumsum([0, *(part.num_nodes for part in parts)])
    for number, (part, first) in enumerate(zip(parts, starts, strict=False)):
        assert (joined.leaves(number) == part.leaves(0) + first).all()
        for leaf in part.leaves(0).tolist():
            assert (joined.context(leaf + int(first)) == part.context(leaf)).all()


@EXAMPLES
@given(forest=trees(vocabulary=3, shared_prompts=True), seed=st.integers(0, 9), scoring=SCORING, shared=st.booleans())
def test_scores_and_layouts_are_the_same_to_the_bit_whatever_the_arrival(
    forest: list[Tree], seed: int, scoring: tuple[str, dict[str, Any]], shared: bool
) -> None:
    joined = Forest.concat(*grown_apart(forest, seed))
    whole = columns_of([])[0]
    parts = [columns_of([tree])[0] for tree in forest]
    sizes = np.cumsum([0, *(len(part["parent"]) for part in parts)])
    tokens = np.cumsum([0, *(len(part["token_ids"]) for part in parts)])
    for name in whole:
        whole[name] = np.concatenate([part[name] for part in parts])
    whole["tree"] = np.repeat(np.arange(len(parts), dtype=np.uint32), np.diff(sizes))
    is_root = whole["parent"] == 2**32 - 1
    whole["parent"] = np.where(is_root, whole["parent"], whole["parent"] + np.repeat(sizes[:-1], np.diff(sizes)))
    whole["parent"] = whole["parent"].astype(np.uint32)
    starts = [part["token_start"][1:] + first for part, first in zip(parts, tokens, strict=False)]
    whole["token_start"] = np.concatenate([[0], *starts]).astype(np.uint64)
    at_once = Forest.from_columns(**whole)

    ours, theirs = joined.score(*scoring), at_once.score(*scoring)
    for name in ("depth", "num_leaves", "value", "advantage"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    packed = [f.pack(s, 0.5, shared=shared).micro_batches(7) for f, s in ((joined, ours), (at_once, theirs))]
    assert len(packed[0]) == len(packed[1])
    for ours_micro, theirs_micro in zip(*packed, strict=True):
        for name in ("token_ids", "positions", "predictors", "target_ids", "logprobs", "gain", "penalty", "weights"):
            np.testing.assert_array_equal(getattr(ours_micro, name), getattr(theirs_micro, name))


def test_a_joined_forest_grows_on_and_its_parts_stay_as_they_are() -> None:
    part = Forest()
    root = part.add_tree(4, np.array([7], dtype=np.uint32))
    part.columns()
    joined = Forest.concat([part, part])
    leaf = joined.add_node(1, np.array([8], dtype=np.uint32), np.ones(1, bool), np.zeros(1, np.float32), 1, 0)
    joined.set_reward(leaf, 1.0)
    assert joined.context(leaf).tolist() == [7, 8]
    assert (part.num_nodes, root, joined.num_trees) == (1, 0, 2)
    assert Forest.concat([]).num_nodes == 0


def test_a_wrong_order_is_refused() -> None:
    forest = Forest()
    root = forest.add_tree(0, np.array([], dtype=np.uint32))
    forest.add_node(root, np.array([], dtype=np.uint32), np.zeros(0, bool), np.zeros(0, np.float32), 0, 0)
    for order, message in (
        ([1, 0], "parent 0 does not precede"),
        ([0, 0], "names node 0 twice"),
        ([0], "has 1 entries"),
    ):
        with pytest.raises(CoreError, match=message):
            Forest.concat([forest], [np.array(order, dtype=np.uint32)])
