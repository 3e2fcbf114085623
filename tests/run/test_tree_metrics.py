"""Metrics of columns are those of the records, the naive way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import Forest
from treegrpo_cli.run.tree_metrics import learned_prompts, tree_metrics
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.scoring import with_scores
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.reference_metrics import is_dead, reference_metrics

LEAF_STATUS = ["done", "truncated_turns", "truncated_tokens", "error"]


@st.composite
def records(draw: st.DrawFn) -> list[TreeRecord]:
    """Trees of up to three prompts, with few different tokens, so that paths are often the same."""
    tree_ids: dict[str, int] = {}
    trees = []
    for _ in range(draw(st.integers(0, 5))):
        prompt_id = draw(st.sampled_from(["p", "q", "r"]))
        tree_ids[prompt_id] = tree_ids.get(prompt_id, -1) + 1
        parents = [None, *(draw(st.integers(max(0, n - 3), n)) for n in range(draw(st.integers(0, 8))))]
        nodes = [draw(nodes_at(place, parent, place in parents)) for place, parent in enumerate(parents)]
        trees.append(TreeRecord(prompt_id=prompt_id, tree_id=tree_ids[prompt_id], nodes=nodes))
    return trees


@st.composite
def nodes_at(draw: st.DrawFn, place: int, parent: int | None, is_inner: bool) -> dict[str, Any]:
    num_tokens = draw(st.integers(0, 2))
    num_sampled = draw(st.integers(0, num_tokens)) if place else 0
    status = "open" if is_inner or not place else draw(st.sampled_from(LEAF_STATUS))
    return {
        "id": place,
        "parent": parent,
        "status": status,
        "reward": draw(st.sampled_from([None, 0.0, 1.0, 0.25])) if status not in ("open", "error") else None,
        "token_ids": [draw(st.integers(0, 1)) for _ in range(num_tokens)],
        "sampled": [[0, num_sampled]] if num_sampled else [],
        "logprobs": [-0.5] * num_sampled,
    }


@settings(deadline=None)
@given(records(), st.sampled_from(["keep", "drop", "refill"]), st.sampled_from(["tree-grpo", "parent"]))
def test_metrics_of_columns_are_those_of_records(trees: list[TreeRecord], dead_prompts: str, estimator: str) -> None:
    forest = to_forest(trees)
    scores = forest.score(estimator, {})
    expected = reference_metrics(with_scores(trees, scores), dead_prompts != "keep")
    assert tree_metrics(forest, scores, learned_prompts(forest, dead_prompts)) == pytest.approx(expected)


@settings(deadline=None)
@given(records())
def test_prompts_come_in_the_order_of_their_first_tree_and_dead_ones_are_dropped(trees: list[TreeRecord]) -> None:
    forest = to_forest(trees)
    prompt_ids = list(dict.fromkeys(tree.prompt_id for tree in trees))  # numbered so by `to_forest`
    alive = [
        number
        for number, prompt_id in enumerate(prompt_ids)
        if not is_dead([tree for tree in trees if tree.prompt_id == prompt_id])
    ]
    assert learned_prompts(forest, "keep").tolist() == list(range(len(prompt_ids)))
    assert learned_prompts(forest, "drop").tolist() == alive


def test_prompts_keep_their_order_whatever_their_numbers_are() -> None:
    forests = []
    for number in (7, 2, 5, 2):
        forest = Forest()
        root = forest.add_tree(number, np.array([1], dtype=np.uint32))
        for reward in (0.0, float(number != 5)):
            tokens = np.array([2], dtype=np.uint32)
            leaf = forest.add_node(root, tokens, np.array([True]), np.array([-0.5], dtype=np.float32), 1, 0)
            forest.set_reward(leaf, reward)
        forests.append(forest)
    joined = Forest.concat(forests)
    assert learned_prompts(joined, "keep").tolist() == [7, 2, 5]
    assert learned_prompts(joined, "drop").tolist() == [7, 2]
