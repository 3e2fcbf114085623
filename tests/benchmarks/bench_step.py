"""The driver's own share of a training step, model and tools aside: columns joined, against records as go-between.

    python tests/benchmarks/bench_step.py

Both begin with trees as they grew and end with the layout that is trained on, and with the step's metrics. Through
columns: the trees' tables are joined, scored once, packed; metrics are computed a column at a time. Through records:
each node becomes a dictionary, records become a forest again, metrics are counted node by node, and prompt by prompt
the trees are scored a second time for the tree file. What makes the records for that file stands beside it: the columns
pay for it too, but behind the update. A second table has what each selection rule takes of a round of all trees, with
the columns that it is made of: rollouts wait for that, once a round.
"""

import argparse
import asyncio
import platform
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench_core import time_in_turns

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli._core import Forest, describe_selection_rules
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rewards import LeafReward
from treegrpo_cli.rollout.disagreement import RewardsSoFar
from treegrpo_cli.rollout.forest import join
from treegrpo_cli.rollout.grove import Grove, trees_wait
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.selection import load_rule
from treegrpo_cli.rollout.timings import Stopwatch
from treegrpo_cli.rollout.tree import ROOT_KEY, Prompt, Tree, Turn
from treegrpo_cli.run.tree_metrics import learned_prompts, tree_metrics
from treegrpo_cli.train.batch import layouts
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.scoring import score_group, with_scores
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.trees.tree_record import TreeRecord
from treegrpo_cli.types import NodeStatus, Task

from tests.reference_metrics import is_dead, reference_metrics, rewards_of, std

VOCABULARY, TURNS = 50_000, 4
TEXT = "word " * 100
CONFIG = make_config({"rollout": {"num_trees": 2, "num_expansions": 2, "num_rounds": 1}})
ESTIMATOR = CONFIG.advantage.estimator


def grown_trees(num_prompts: int, seed: int = 0) -> list[Tree]:
    """Two trees a prompt: a chain of four turns, then two more from random turns; 100 to 300 tokens a turn."""
    draw = np.random.default_rng(seed)
    player: Any = SimpleNamespace(config=CONFIG)
    trees = []
    for number in range(num_prompts):
        question = draw.integers(0, VOCABULARY, 200, dtype=np.uint32)
        for tree_id in range(2):
            tree = Tree(player, Prompt(number, f"{number:08d}", Task("question", "answer")), tree_id)
            root = tree.forest.add_tree(number, question)
            tree.turns[root] = Turn(ROOT_KEY, 0, NodeStatus.OPEN, None, TEXT)
            for chain in range(3):
                inner = [node for node, turn in tree.turns.items() if turn.depth < TURNS]
                add_chain(tree, int(draw.choice(inner)) if chain else root, chain, draw)
            trees.append(tree)
    return trees


def add_chain(tree: Tree, node: int, chain: int, draw: np.random.Generator) -> None:
    """Take turns from `node` to the last, and reward the leaf."""
    for turn in range(TURNS - tree.turns[node].depth):
        depth = tree.turns[node].depth + 1
        num = int(draw.integers(100, 301))
        sampled = np.arange(num) < num // 2
        logprobs = np.where(sampled, -draw.random(num), 0).astype(np.float32)
        status = NodeStatus.DONE if depth == TURNS else NodeStatus.OPEN
        token_ids = draw.integers(0, VOCABULARY, num, dtype=np.uint32)
        entropies = np.where(sampled, -logprobs, np.nan).astype(np.float32)
        node = tree.forest.add_node(
            node, token_ids, sampled, logprobs, int(status), 0, round=min(chain, 1), entropies=entropies
        )
        tree.turns[node] = Turn((min(chain, 1), chain, turn), depth, status, None, TEXT, TEXT)
    reward = float(draw.integers(0, 2))
    tree.rewards[node] = LeafReward(reward, {"exact_match": reward})
    tree.forest.set_reward(node, reward)


def groves_for(trees: list[Tree], **selection: Any) -> list[Grove]:
    """The same trees, about to choose where their next round starts."""
    config = make_config({"selection": selection})
    player: Any = SimpleNamespace(config=config, rule=load_rule(config), selecting=Stopwatch())
    player.rewards_so_far = RewardsSoFar()
    groves = []
    for _, group in groupby(trees, key=lambda tree: tree.prompt.number):
        grown = list(group)
        ids = list(range(len(grown)))
        for some in [grown] if trees_wait(config, player.rule) else [[tree] for tree in grown]:
            grove = Grove(player, grown[0].prompt, ids[: len(some)])
            grove.trees = some
            groves.append(grove)
    return groves


def select_all(groves: list[Grove]) -> None:
    """Choose the nodes of a round, for all trees."""

    async def work() -> None:
        for grove in groves:
            await grove.select([CONFIG.rollout.num_expansions] * len(grove.trees))

    asyncio.run(work())


def pack(forest: Forest, scores: Any, prompts: Any = None) -> Any:
    return layouts(forest, scores, CONFIG.loss.prefix_weight, 10**6, shared=True, prompts=prompts)


def records_of(trees: list[Tree]) -> list[TreeRecord]:
    return [tree_record(tree) for tree in trees]


def groups_of(records: list[TreeRecord]) -> list[list[TreeRecord]]:
    return [list(group) for _, group in groupby(records, key=lambda record: record.prompt_id)]


def count_records(records: list[TreeRecord], forest: Forest, scores: Any) -> dict[str, float]:
    """The metrics node by node: `RolloutStats`, rewards by prompt and by tree, and the signal's columns."""
    stats, groups = RolloutStats(), groups_of(records)
    for group in groups:
        stats.add_group(group)
    dead = [is_dead(group) for group in groups]
    spread = [std(rewards_of(group)) for group in [*groups, *([record] for record in records)]]
    tokens = sum(len(node["token_ids"]) for record in records for node in record.nodes)
    closed = [node["status"] for record in records for node in record.nodes if node["status"] != "open"]
    levels = [float(np.abs(scores.advantage[scores.depth == depth]).mean()) for depth in np.unique(scores.depth)[1:]]
    rewards = rewards_of(records)
    return {"reward": sum(rewards) / len(rewards)} | {
        f"{place}": float(value) for place, value in enumerate([*dead, *spread, tokens, len(closed), *levels])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    trees = grown_trees(arguments.prompts)
    forest = join(trees)
    scores = forest.score(ESTIMATOR, {})
    prompts = learned_prompts(forest, "keep")
    records = records_of(trees)
    again = to_forest(records)
    found = tree_metrics(forest, scores, prompts)
    for name, value in reference_metrics(with_scores(records, scores)).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
    np.testing.assert_array_equal(forest.columns()["token_ids"], again.columns()["token_ids"])

    steps = {
        "columns: join": lambda: join(trees),
        "columns: score": lambda: forest.score(ESTIMATOR, {}),
        "columns: metrics": lambda: (learned_prompts(forest, "keep"), tree_metrics(forest, scores, prompts)),
        "columns: pack": lambda: pack(forest, scores, prompts),
        "records: a dictionary a node": lambda: records_of(trees),
        "records: a forest of them": lambda: to_forest(records),
        "records: score": lambda: again.score(ESTIMATOR, {}),
        "records: metrics": lambda: count_records(records, again, scores),
        "records: pack": lambda: pack(again, scores=again_scores),
        "records: scored again for the file": lambda: [score_group(g, ESTIMATOR, {}) for g in groups_of(records)],
        "behind the update: records for the file": lambda: with_scores(records_of(trees), scores),
    }
    again_scores = again.score(ESTIMATOR, {})
    median = time_in_turns(steps, arguments.repeats)
    ours = sum(seconds for name, seconds in median.items() if name.startswith("columns"))
    theirs = sum(seconds for name, seconds in median.items() if name.startswith("records"))
    print(
        f"{forest.num_tokens:,} tokens in {forest.num_nodes:,} nodes of {forest.num_trees} trees; "
        f"{platform.machine()}, one thread, median of {arguments.repeats}\n\n| | ms |\n|---|---|"
    )
    for name, seconds in median.items():
        print(f"| {name} | {1e3 * seconds:.2f} |")
    print(f"| **columns, all** | **{1e3 * ours:.2f}** |\n| **records, all** | **{1e3 * theirs:.2f}** |")
    rules = [rule["name"] for rule in describe_selection_rules()] + ["examples/own_selection.py:undecided"]
    groves = {rule: groves_for(trees, rule=rule) for rule in rules}
    chosen = time_in_turns({rule: lambda rule=rule: select_all(groves[rule]) for rule in rules}, arguments.repeats)  # type: ignore[misc]
    print(f"\nRecords take {theirs / ours:.1f} times as long before the next rollout may begin.")
    print("\n| choosing a round's nodes | ms |\n|---|---|")
    for name, seconds in chosen.items():
        print(f"| {name} | {1e3 * seconds:.2f} |")


if __name__ == "__main__":
    main()
