"""The table of leaves says of each what a walk along its path says."""

import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import Forest
from treegrpo_cli.types import NodeStatus

from tests import reference
from tests.forests import forest_of, trees
from tests.reference import Node, Tree
from tests.reference_layout import path_of


@settings(max_examples=200, deadline=None)
@given(forest=trees(vocabulary=2, shared_prompts=True), seed=st.integers(0, 9))
def test_every_leaf_has_its_row(forest: list[Tree], seed: int) -> None:
    core, nodes = forest_of(forest, random.Random(seed))
    row_of = {id(node): row for row, node in enumerate(nodes)}
    of_trees = ((row_of[id(leaf)], number) for number, tree in enumerate(forest) for leaf in leaves_below(tree["root"]))
    expected = sorted(of_trees)
    paths: dict[Any, int] = {}
    table = core.leaf_columns()
    assert table["node"].tolist() == [row for row, _ in expected]
    for place, (row, number) in enumerate(expected):
        tree = forest[number]
        path = path_of(tree["root"], nodes[row])
        assert path is not None
        tokens = [token for node in path for token in node["tokens"]]
        ids = tuple(token for token, _, _ in tokens)
        first = paths.setdefault((tree["prompt"], ids), place)
        assert {name: column[place].item() for name, column in table.items() if name != "reward"} == {  # type: ignore[attr-defined]
            "node": row,
            "tree": number,
            "prompt": tree["prompt"],
            "depth": len(path) - 1,
            "status": NodeStatus.OPEN if len(path) == 1 else NodeStatus.DONE,
            "path_tokens": len(ids),
            "gen_tokens": sum(sampled for _, sampled, _ in tokens),
            "same_as": first,
        }
        np.testing.assert_equal(
            table["reward"][place], np.nan if nodes[row]["reward"] is None else nodes[row]["reward"]
        )


def leaves_below(node: Node) -> list[Node]:
    return [below for below in reference.walk(node) if not below["children"]]


def test_a_table_of_leaves_leaves_the_forest_free_to_grow() -> None:
    forest = Forest()
    root = forest.add_tree(3, np.array([1, 2], dtype=np.uint32))
    assert forest.leaf_columns()["path_tokens"].tolist() == [2]
    forest.add_node(
        root, np.array([5], dtype=np.uint32), np.ones(1, bool), np.zeros(1, np.float32), NodeStatus.ERROR, 0
    )
    table = forest.leaf_columns()
    assert (table["node"].tolist(), table["status"].tolist()) == ([1], [NodeStatus.ERROR])
