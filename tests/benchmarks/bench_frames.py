"""Tables of trees against a dict a row, in seconds of the processor: `python tests/benchmarks/bench_frames.py`."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from treegrpo_cli import TreeRecord, Trees, score
from treegrpo_cli._core import Forest
from treegrpo_cli.trees.forest import to_forest

NUM_TREES, NUM_TURNS, TURN_TOKENS = 400, 60, 40
REPEATS = 3


def grown(tree_id: int, random_: random.Random) -> TreeRecord:
    """A tree of turns, each below one of those before it."""
    parents = [None, *(random_.randrange(max(place - 8, 0), place) for place in range(1, NUM_TURNS))]
    inner = set(parents)
    nodes: list[dict[str, Any]] = []
    for place, parent in enumerate(parents):
        tokens = [random_.randrange(50_000) for _ in range(TURN_TOKENS)]
        drawn = {"sampled": [[0, 25]], "logprobs": [-random_.random() for _ in range(25)]} if place else {}
        reward = float(random_.random() < 0.5) if place and place not in inner else None
        nodes.append({"id": place, "parent": parent, "reward": reward, "token_ids": tokens, "text": "t" * 80, **drawn})
    return TreeRecord(prompt_id=f"{tree_id // 4:08d}", tree_id=tree_id % 4, nodes=nodes)


def naive_nodes(trees: Trees) -> pd.DataFrame:
    """A dict a node."""
    names = ("reward", "num_leaves", "value", "advantage", "depth", "text")
    return pd.DataFrame(
        [
            {"prompt_id": tree.prompt_id, "tree_id": tree.tree_id, "node_id": node["id"], "parent_id": node["parent"]}
            | {name: node.get(name) for name in names}
            | {"num_tokens": len(node["token_ids"]), "logprob": sum(node.get("logprobs", ()))}
            for tree in trees
            for node in tree.nodes
        ]
    )


def naive_tokens(trees: Trees) -> pd.DataFrame:
    """A dict a token."""
    rows = []
    for tree in trees:
        for node in tree.nodes:
            sampled = [at for start, end in node.get("sampled", ()) for at in range(start, end)]
            logprobs = dict(zip(sampled, node.get("logprobs", ()), strict=True))
            rows += [
                {"prompt_id": tree.prompt_id, "tree_id": tree.tree_id, "node_id": node["id"], "depth": node["depth"]}
                | {"token_id": token, "sampled": at in logprobs, "logprob": logprobs.get(at)}
                | {"advantage": node["advantage"] if at in logprobs else None}
                for at, token in enumerate(node["token_ids"])
            ]
    return pd.DataFrame(rows)


def seconds(make: Callable[[], Any]) -> float:
    """The fastest of a few runs."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        made = make()
        times.append(time.process_time() - start)
        del made
    return min(times)


def main() -> None:
    """Measure and print a table of Markdown."""
    random_ = random.Random(0)
    trees = score([grown(place, random_) for place in range(NUM_TREES)], "parent")
    forest: Forest = to_forest(trees)
    scores = forest.score("parent")
    nodes, tokens = naive_nodes(trees), trees.to_pandas("tokens")
    np.testing.assert_array_equal(nodes["advantage"], trees.to_pandas()["advantage"])
    assert len(naive_tokens(trees)) == len(tokens) == NUM_TREES * NUM_TURNS * TURN_TOKENS
    slow = {"nodes": seconds(lambda: naive_nodes(trees)), "tokens": seconds(lambda: naive_tokens(trees))}
    cases: list[tuple[str, str, Callable[[], Any]]] = [
        ("trees, to_pandas()", "nodes", trees.to_pandas),
        ('trees, to_pandas("tokens")', "tokens", lambda: trees.to_pandas("tokens")),
        ('trees, to_arrow("tokens")', "tokens", lambda: trees.to_arrow("tokens")),
        ("scores, to_pandas()", "nodes", scores.to_pandas),
        ('scores, to_pandas("tokens")', "tokens", lambda: scores.to_pandas("tokens")),
        ('scores, to_arrow("tokens")', "tokens", lambda: scores.to_arrow("tokens")),
    ]
    print(
        f"{len(nodes):,} nodes, {len(tokens):,} tokens; a dict a row: {slow['nodes']:.3f} s, {slow['tokens']:.3f} s\n"
    )
    print("| | seconds | times as fast as a dict a row |\n|---|---|---|")
    for name, rows, make in cases:
        taken = seconds(make)
        print(f"| {name} | {taken:.3f} | {slow[rows] / taken:.1f} |")


if __name__ == "__main__":
    main()
