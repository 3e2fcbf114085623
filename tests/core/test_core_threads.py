"""Any thread may read a forest while others read or grow it; what was lent never changes."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from treegrpo_cli._core import CoreError, Forest
from treegrpo_cli.types import NodeStatus

NUM_TURNS = 300


def add(forest: Forest, parent: int, token: int, status: NodeStatus = NodeStatus.OPEN) -> int:
    token_ids = np.array([token], dtype=np.uint32)
    return forest.add_node(parent, token_ids, np.ones(1, bool), np.zeros(1, np.float32), status, 0)


def run_together(*parts: Callable[[], None]) -> None:
    """Run the parts in threads of their own, and raise what any of them raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(parts))

    def guarded(part: Callable[[], None]) -> None:
        start.wait()
        try:
            part()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_a_forest_is_read_and_scored_while_others_grow_it() -> None:
    forest = Forest()
    roots = [forest.add_tree(0, np.array([tree], dtype=np.uint32)) for tree in range(3)]
    ends: dict[int, int] = {}

    def grow(root: int) -> None:
        node = root
        for turn in range(NUM_TURNS):
            leaf = add(forest, node, turn, NodeStatus.DONE)
            forest.set_reward(leaf, float(turn % 2))
            node = add(forest, node, turn)
        ends[root] = node

    def read() -> None:
        while len(ends) < len(roots):
            before = forest.num_nodes
            scores = forest.score("tree-grpo", {})
            table = forest.leaf_columns()
            assert before <= len(scores.value) <= forest.num_nodes
            assert len(scores.depth) == len(scores.value)
            assert len(table["node"]) >= len(roots)
            assert forest.context(forest.num_nodes - 1)[0] < len(roots)
            assert Forest.concat([forest, forest]).num_trees == 2 * len(roots)

    run_together(*(lambda root=root: grow(root) for root in roots), read, read)  # type: ignore[misc]
    assert forest.num_nodes == len(roots) * (1 + 2 * NUM_TURNS)
    for tree, root in enumerate(roots):
        assert forest.context(ends[root]).tolist() == [tree, *range(NUM_TURNS)]
        rewards = forest.columns()["reward"][forest.leaves(tree)]
        assert np.nansum(rewards) == NUM_TURNS // 2


def test_a_forest_that_was_lent_while_another_thread_scores_it_stays_as_it_is() -> None:
    forest = Forest()
    node = forest.add_tree(0, np.zeros(1, np.uint32))
    for turn in range(2000):
        node = add(forest, node, turn)
    lent = threading.Event()
    refused: list[str] = []

    def score() -> None:
        for _ in range(200):
            forest.score("sibling", {"value": "child-mean"})

    def lend() -> None:
        columns = forest.columns()
        lent.set()
        before = {name: column.copy() for name, column in columns.items()}
        for _ in range(200):
            forest.columns()
        np.testing.assert_equal(dict(columns), before)

    def grow() -> None:
        lent.wait()
        for change in (lambda: add(forest, node, 1), lambda: forest.add_tree(0, np.zeros(1, np.uint32))):
            with pytest.raises(CoreError, match="the forest is frozen") as caught:
                change()
            refused.append(str(caught.value))

    run_together(score, score, lend, grow)
    assert len(refused) == 2


def test_a_change_that_is_refused_holds_nobody_up() -> None:
    forest = Forest()
    root = forest.add_tree(0, np.zeros(1, np.uint32))
    done = add(forest, root, 1, NodeStatus.DONE)

    def fail() -> None:
        for _ in range(3000):
            with pytest.raises(CoreError, match="is closed"):
                add(forest, done, 1)

    def read() -> None:
        for _ in range(3000):
            forest.score("parent", {})

    run_together(fail, read, fail, read)


def test_columns_are_lent_while_they_are_somebodys_input() -> None:
    forest = Forest()
    root = forest.add_tree(0, np.zeros(1, np.uint32))
    for turn in range(500):
        forest.set_reward(add(forest, root, turn, NodeStatus.DONE), 1.0)
    names = ("prompt", "parent", "tree", "status", "reward", "token_start", "token_ids", "sampled", "logprobs")
    columns: dict[str, Any] = dict(forest.columns())

    def read() -> None:
        for _ in range(300):
            Forest.from_columns(**{name: columns[name] for name in names})

    def lend() -> None:
        for _ in range(300):
            forest.columns()

    run_together(read, lend, read, lend)


def test_a_reader_keeps_the_forest_that_it_began_with() -> None:
    forest = Forest()
    root = forest.add_tree(0, np.zeros(1, np.uint32))
    forest.set_reward(add(forest, root, 1, NodeStatus.DONE), 1.0)
    scores = forest.score("grpo", {"singleton": "raw"})
    add(forest, root, 2, NodeStatus.DONE)
    assert (scores.depth.tolist(), scores.num_leaves.tolist()) == ([0, 1], [1, 1])
    with pytest.raises(CoreError, match="of this one before it changed"):
        forest.pack(scores)
