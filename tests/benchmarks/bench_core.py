"""Leaf sums, leaf-mean values and `parent` advantages of a million nodes: the Rust core, numpy by level, plain Python;
then every estimator and every selection rule against numpy.

    python tests/benchmarks/bench_core.py

All compute the same numbers (checked), in turns, on one thread. Times are the process's own, so that other work on the
machine counts little. The copy of as many bytes as the core's columns hold says what memory alone would take.
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from treegrpo_cli._core import (
    NO_PARENT,
    Forest,
    describe_estimators,
    describe_selection_rules,
    draw_by_scores,
    select_uniform,
)

from tests.benchmarks import numpy_core

Columns = dict[str, NDArray[np.generic]]
Result = tuple[NDArray[np.float64], NDArray[np.float64]]
Pairs = dict[str, tuple[Callable[[], object], Callable[[], object]]]
"""Name -> the core's and numpy's."""


TOKENS_A_TURN = 4
NUM_WORDS = 2  # so few that turns are often equal
NUM_KEYS = 20
NUM_DRAWS = 1000


def random_columns(num_nodes: int, nodes_a_tree: int, seed: int = 0) -> Columns:
    """Random trees: a parent is any node before it in its tree; leaves have rewards 0 or 1; two trees a prompt."""
    draw = np.random.default_rng(seed)
    place = np.arange(num_nodes) % nodes_a_tree
    base = np.arange(num_nodes) - place
    above = base + (draw.random(num_nodes) * np.maximum(place, 1)).astype(np.int64)
    parent = np.where(place == 0, NO_PARENT, above)
    has_child = np.zeros(num_nodes, dtype=bool)
    has_child[above[place > 0]] = True
    is_leaf = ~has_child & (place > 0)
    reward = np.where(is_leaf, draw.integers(0, 2, num_nodes), np.nan)
    num_trees = -(-num_nodes // nodes_a_tree)
    return {
        "prompt": (np.arange(num_trees) // 2).astype(np.uint32),
        "parent": parent.astype(np.uint32),
        "tree": (np.arange(num_nodes) // nodes_a_tree).astype(np.uint32),
        "status": np.where(is_leaf, 1, 0).astype(np.uint8),
        "reward": reward.astype(np.float64),
    }


def with_tokens(columns: Columns, seed: int = 0) -> Columns:
    """The same trees with turns of four sampled tokens, and a prompt that all share; a node's first child goes on
    with its chain, each later one is a round of its own."""
    draw = np.random.default_rng(seed)
    num_nodes = len(columns["parent"])
    sampled = np.repeat(columns["parent"] != NO_PARENT, TOKENS_A_TURN)
    rounds, goes_on = [0] * num_nodes, set()
    for node, parent in enumerate(columns["parent"].tolist()):
        if parent != NO_PARENT:
            rounds[node] = node if parent in goes_on else rounds[parent]
            goes_on.add(parent)
    logprobs = np.where(sampled, np.log(draw.random(len(sampled)) / 2 + 0.5), 0.0)
    return columns | {
        "token_start": np.arange(num_nodes + 1, dtype=np.uint64) * TOKENS_A_TURN,
        "token_ids": np.where(sampled, draw.integers(0, NUM_WORDS, len(sampled)), 0).astype(np.uint32),
        "sampled": sampled,
        "logprobs": logprobs.astype(np.float32),
        "entropy": np.where(columns["parent"] != NO_PARENT, draw.random(num_nodes), np.nan),
        "round": np.array(rounds, dtype=np.uint32),
        "state_key": draw.integers(0, NUM_KEYS, num_nodes).astype(np.uint64),
    }


def plain_python(columns: Columns) -> Result:
    """One loop backwards, one forwards, over lists."""
    parent, reward = columns["parent"].tolist(), columns["reward"].tolist()
    total = [0.0 if value != value else value for value in reward]
    count = [0 if value != value else 1 for value in reward]
    for node in range(len(parent) - 1, -1, -1):
        above = parent[node]
        if above != NO_PARENT:
            total[above] += total[node]
            count[above] += count[node]
    value = [s / n if n else float("nan") for s, n in zip(total, count, strict=True)]
    advantage = [value[n] - value[p] if p != NO_PARENT else 0.0 for n, p in enumerate(parent)]
    return np.array(value), np.array(advantage)


def numpy_by_level(columns: Columns) -> Result:
    """The nodes of each depth at once, deepest first; finding the depths is part of the work."""
    parent = columns["parent"].astype(np.int64)
    is_root = parent == NO_PARENT
    depth = np.zeros(len(parent), dtype=np.int64)
    level = np.flatnonzero(~is_root)
    above = np.where(is_root, 0, parent)
    at = above.copy()
    depth[level] = 1
    while True:  # pointer by pointer to the roots
        level = level[~is_root[at[level]]]
        if not len(level):
            break
        depth[level] += 1
        at[level] = above[at[level]]
    reward = columns["reward"].astype(np.float64)
    total, count = np.nan_to_num(reward), (~np.isnan(reward)).astype(np.int64)
    order = np.argsort(depth, kind="stable")
    bounds = np.searchsorted(depth[order], np.arange(depth.max() + 2))
    for start, end in zip(bounds[-2:0:-1], bounds[:1:-1], strict=True):
        nodes = order[start:end]
        np.add.at(total, parent[nodes], total[nodes])
        np.add.at(count, parent[nodes], count[nodes])
    with np.errstate(invalid="ignore", divide="ignore"):
        value = total / count
    return value, np.where(is_root, 0.0, value - value[above])


def time_in_turns(
    methods: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each method, all of them once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            start = clock()
            method()
            seconds[name].append(clock() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--nodes-a-tree", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    columns = random_columns(arguments.nodes, arguments.nodes_a_tree)
    forest = Forest.from_columns(**columns)
    options: dict[str, str | float | int | bool] = {"roots": "tree"}

    scores = forest.score("parent", options)
    for other in (plain_python(columns), numpy_by_level(columns)):
        np.testing.assert_allclose(scores.value, other[0], rtol=1e-12)
        np.testing.assert_allclose(scores.advantage, np.where(np.isnan(other[0]), np.nan, other[1]), atol=1e-12)

    written = np.empty(arguments.nodes * 36, dtype=np.uint8)  # parent, reward in; sum, count, value, advantage out
    source = np.ones_like(written)
    methods: dict[str, Callable[[], object]] = {
        "Rust core": lambda: forest.score("parent", options),
        "numpy by level": lambda: numpy_by_level(columns),
        "plain Python": lambda: plain_python(columns),
        "copy of the same bytes": lambda: np.copyto(written, source),
    }
    methods["Forest.from_columns"] = lambda: Forest.from_columns(**columns)
    median = time_in_turns(methods, arguments.repeats, time.process_time)
    print(f"{arguments.nodes:,} nodes, {platform.machine()}, one thread, CPU time, median of {arguments.repeats}\n")
    print("| method | ms | M nodes/s | times the Rust core |")
    print("|---|---|---|---|")
    for name, seconds in median.items():
        rate, ratio = arguments.nodes / seconds / 1e6, seconds / median["Rust core"]
        print(f"| {name} | {seconds * 1e3:.1f} | {rate:.1f} | {ratio:.2f} |")
    columns = with_tokens(columns)
    print_pairs("estimator", estimator_pairs(columns), arguments.nodes, arguments.repeats)
    print_pairs("rule", rule_pairs(columns), arguments.nodes, arguments.repeats)


def estimator_pairs(columns: Columns) -> Pairs:
    """Each estimator with its defaults: the core's, and numpy's, which finds the same."""
    forest, pairs = Forest.from_columns(**columns), Pairs()
    for name in (estimator["name"] for estimator in describe_estimators()):
        by_numpy = partial(numpy_core.by_estimator, name, columns)
        scores, (advantage, weight) = forest.score(name, {}), by_numpy()
        np.testing.assert_allclose(scores.advantage, advantage, rtol=1e-9, atol=1e-9, err_msg=name)
        if weight is not None:
            np.testing.assert_allclose(scores.weight, weight, rtol=1e-9, err_msg=name)
        pairs[name] = (partial(forest.score, name, {}), by_numpy)
    return pairs


def rule_pairs(columns: Columns) -> Pairs:
    """The scores of all nodes that have children, by each rule with its defaults, and draws among them."""
    forest, pairs = Forest.from_columns(**columns), Pairs()
    inner = np.unique(columns["parent"])[:-1].astype(np.uint32)
    for name in (rule["name"] for rule in describe_selection_rules()):
        scores = forest.selection_scores(inner, name)
        if name != "uniform":  # all alike: "draws, alike" is what there is to time
            by_numpy = partial(numpy_core.RULES[name], columns)
            np.testing.assert_allclose(scores, by_numpy()[inner], rtol=1e-9, atol=1e-9, err_msg=name)
            pairs[name] = (partial(forest.selection_scores, inner, name), by_numpy)
    draw, count = np.random.default_rng(0), len(scores)
    pairs["draws, alike"] = (
        lambda: select_uniform(count, NUM_DRAWS, True, [0]),
        lambda: draw.integers(0, count, NUM_DRAWS),
    )
    pairs["draws, the best"] = (
        lambda: draw_by_scores(scores, NUM_DRAWS, [0]),
        lambda: np.argpartition(-scores, NUM_DRAWS)[:NUM_DRAWS],
    )
    pairs["draws, Gumbel"] = (
        lambda: draw_by_scores(scores, NUM_DRAWS, [0], 0.5),
        lambda: np.argpartition(-(scores / 0.5 + draw.gumbel(size=count)), NUM_DRAWS)[:NUM_DRAWS],
    )
    chance = scores / scores.sum()
    pairs["draws, in proportion"] = (
        lambda: draw_by_scores(scores, NUM_DRAWS, [0], 1.0, True),
        lambda: draw.choice(count, NUM_DRAWS, p=chance),
    )
    return pairs


def print_pairs(what: str, pairs: Pairs, num_nodes: int, repeats: int) -> None:
    methods: dict[str, Callable[[], object]] = {}
    for name, (core, numpy) in pairs.items():
        methods[name], methods[f"{name}, numpy"] = core, numpy
    median = time_in_turns(methods, repeats, time.process_time)
    print(f"\n| {what} | ms | M nodes/s | numpy, ms | times the core |")
    print("|---|---|---|---|---|")
    for name in pairs:
        ours, theirs = median[name], median[f"{name}, numpy"]
        print(
            f"| {name} | {ours * 1e3:.2f} | {num_nodes / ours / 1e6:.1f} | {theirs * 1e3:.2f} | {theirs / ours:.1f} |"
        )


if __name__ == "__main__":
    main()
