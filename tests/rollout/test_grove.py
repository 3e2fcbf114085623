"""What a prompt's trees become depends on their keys alone, whatever chooses the nodes and whatever limits them."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from treegrpo_cli._core import describe_selection_rules
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.collect import Grown, collect
from treegrpo_cli.rollout.disagreement import RewardsSoFar
from treegrpo_cli.rollout.forest import join
from treegrpo_cli.rollout.grove import Grove, groves_of, trees_wait
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.selection import CoreRule
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.tree_record import TreeRecord
from treegrpo_cli.types import Action, Completion, Message, StepResult, Task

from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
TICK_S = 0.002


def waits(order: int, text: str) -> float:
    """Seconds that depend on the text alone; under `order` -1 who came first under 1 comes last."""
    share = random.Random(text).random()
    return TICK_S * {1: share, -1: 1 - share, 0: 0}[order]


class Knowing(HashSampler):
    """Knows entropies too; answers in one order or in the opposite one."""

    def __init__(self, order: int = 0) -> None:
        super().__init__(TOKENIZER)
        self.order = order

    async def sample(self, context: Any, params: Any, seed: int) -> Completion:
        await asyncio.sleep(waits(self.order, f"{seed}"))
        completion = await super().sample(context, params, seed)
        draw = random.Random(seed)
        entropies = [draw.random() for _ in completion.token_ids]
        return replace(completion, entropies=entropies, confidence=-draw.random())


class EchoWorld:
    """Says back what it is told."""

    tools = ()

    def __init__(self, order: int = 0) -> None:
        self.order = order

    async def reset(self, task: Task) -> tuple[str, list[Message]]:
        await asyncio.sleep(waits(self.order, task.question))
        return "", [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        said = state + action.text
        await asyncio.sleep(waits(self.order, said))
        done = "<answer>" in action.text
        return said, StepResult(({"role": "user", "content": "again"},), done=done, num_tool_calls=1)


asked: list[list[str]] = []
"""The completions of each call of `lisbon`."""


def lisbon(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    asked.append(list(completions))
    return [float("lisbon" in completion) for completion in completions]


def settings(**sections: Any) -> dict[str, Any]:
    return {
        "environment": {"name": f"{__name__}:EchoWorld", "tool_retries": 0},
        "reward": {"functions": [f"{__name__}:lisbon"]},
        **sections,
        "rollout": {"max_turns": 4, "num_trees": 2, "num_expansions": 2, "num_rounds": 3} | sections.get("rollout", {}),
    }


def player_of(given: dict[str, Any], order: int = 0) -> Player:
    given["environment"]["options"] = {"order": order}
    config = make_config(given)
    return Player(World(config, TOKENIZER), Knowing(order), config)


def grow(player: Player, count: int = 5) -> list[Grown]:
    prompts = [Prompt(i, f"p{i}", Task(f"question {i}")) for i in range(count)]

    async def collected() -> list[Grown]:
        groups = collect(player, prompts, player.config.rollout.num_trees)
        return [grown async for grown in groups]

    return sorted(asyncio.run(collected()), key=lambda grown: grown.prompt.number)


def trees_of(groups: Sequence[Grown]) -> list[Tree]:
    return [tree for grown in groups for tree in grown.trees]


def nodes_of(groups: Sequence[Grown]) -> list[list[dict[str, Any]]]:
    return [tree_record(tree).nodes for tree in trees_of(groups)]


def assert_the_same(one: Sequence[Grown], other: Sequence[Grown]) -> None:
    """The same trees, although their nodes came in other orders."""
    assert nodes_of(one) == nodes_of(other)
    assert [tree.in_key_order() for tree in trees_of(one)] != [tree.in_key_order() for tree in trees_of(other)]


def test_the_file_gives_back_the_columns_that_the_trees_had() -> None:
    trees = trees_of(grow(player_of(settings(), 1)))
    grown, read = join(trees), to_forest([tree_record(tree) for tree in trees])
    assert read.knows_rounds
    ours, theirs = grown.columns(), read.columns()
    for name in ("parent", "round", "entropy", "confidence", "reward", "token_ids", "sampled", "logprobs"):
        np.testing.assert_array_equal(ours[name], theirs[name], name)
    assert set(ours["round"]) == {0, 1, 2, 3}
    assert not np.isnan(ours["entropy"][ours["parent"] < 2**32 - 1]).any()


def test_each_turn_tells_its_round_and_draw() -> None:
    for nodes in nodes_of(grow(player_of(settings()))):
        assert {"round", "draw", "entropy"}.isdisjoint(nodes[0])
        leaves = [node for node in nodes if node["status"] != "open"]
        assert {(leaf["round"], leaf["draw"]) for leaf in leaves} == {(0, 0)} | {
            (round_, draw) for round_ in (1, 2, 3) for draw in (0, 1)
        }
        for node in nodes[1:]:
            parent = nodes[node["parent"]]
            assert (node["round"], node["draw"]) >= (parent.get("round", 0), parent.get("draw", 0))


RULES: dict[str, dict[str, Any]] = {rule["name"]: {"rule": rule["name"]} for rule in describe_selection_rules()} | {
    "uniform, none twice": {"rule": "uniform", "replacement": False},
    "entropy, warm": {"rule": "entropy", "temperature": 0.5},
    "of one's own": {"rule": "examples/own_selection.py:undecided", "few": 3},
    "of one's own, warm": {"rule": "examples/own_selection.py:undecided", "temperature": 0.1, "replacement": True},
    "of one's own, over the prompt": {"rule": f"{__name__}:far_from_others"},
}


def far_from_others(columns: dict[str, Any], candidates: Any, power: int = 2) -> Any:
    """Reads the other trees too, and the rounds."""
    mean = np.nanmean(columns["reward"]) if np.isfinite(columns["reward"]).any() else 0.5
    value = np.nan_to_num(columns["value"][candidates], nan=0.5)
    return np.abs(value - mean) ** power + columns["round"][candidates] / 100 + len(columns["parent"]) * 0


far_from_others.reads_prompt = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("schedule", ["free", "lock-step"])
@pytest.mark.parametrize("rule", RULES)
def test_opposite_orders_of_arrival_grow_the_same_trees(rule: str, schedule: str) -> None:
    given = settings(selection=RULES[rule], rollout={"schedule": schedule})
    assert_the_same(*(grow(player_of(given, order), 3) for order in (1, -1)))


@pytest.mark.parametrize("rule", [name for name in RULES if "own" not in name])
def test_the_tree_file_tells_what_each_round_chose_from_and_so_what_it_drew(rule: str) -> None:
    player = player_of(settings(selection=RULES[rule]), 1)
    player.rewards_so_far = RewardsSoFar().with_more([0.0, 0.0])
    num_draws = 0
    for grown in grow(player, 3):
        records = [tree_record(tree) for tree in grown.trees]
        for tree_id, record in enumerate(records):
            for round_ in (1, 2, 3):
                drawn = [
                    n["parent"] for n in record.nodes if n.get("round") == round_ and is_first_turn(n, record.nodes)
                ]
                assert drawn == replayed(records, tree_id, round_, grown.prompt.number, RULES[rule])
                num_draws += len(drawn)
    assert num_draws > 20


def is_first_turn(node: dict[str, Any], nodes: list[dict[str, Any]]) -> bool:
    parent = nodes[node["parent"]]
    return (node["round"], node["draw"]) != (parent.get("round"), parent.get("draw"))


def replayed(records: list[TreeRecord], tree_id: int, round_: int, number: int, given: dict[str, Any]) -> list[int]:
    """What the core draws on the trees as they stood before this round."""
    before = [
        TreeRecord(prompt_id=record.prompt_id, tree_id=record.tree_id, nodes=nodes_before(record.nodes, round_))
        for record in records
    ]
    forest, start = to_forest(before), sum(len(record.nodes) for record in before[:tree_id])
    nodes = before[tree_id].nodes
    candidates = np.array([node["id"] + start for node in nodes if node["status"] == "open"], dtype=np.uint32)
    options = {name: value for name, value in given.items() if name != "rule"}
    key = [0, number, tree_id, round_]
    drawn = forest.select(candidates, 2, key, given["rule"], options, prior=0.25, rewards_asked=True)
    ids = [place for place, node in enumerate(records[tree_id].nodes) if node.get("round", 0) < round_]
    return [ids[node - start] for node in drawn.tolist()]


def nodes_before(nodes: list[dict[str, Any]], round_: int) -> list[dict[str, Any]]:
    """The nodes of earlier rounds, numbered anew; they stand in front already but for those of later draws."""
    kept = [node for node in nodes if node.get("round", 0) < round_]
    place = {node["id"]: index for index, node in enumerate(kept)}
    return [
        node | {"id": place[node["id"]], "parent": place.get(node["parent"]) if node["parent"] is not None else None}
        for node in kept
    ]


def test_trees_wait_for_each_other_only_where_something_reads_or_limits_them_all() -> None:
    def sizes(**sections: Any) -> list[int]:
        return [
            len(grove.trees) for grove in groves_of(player_of(settings(**sections)), Prompt(0, "p", Task("q")), [0, 1])
        ]

    for rule in ("uniform", "entropy", "uct"):
        assert sizes(selection={"rule": rule}) == [1, 1]
    for shared in (
        {"selection": {"rule": "contrast"}},
        {"selection": RULES["of one's own, over the prompt"]},
        {"budget": {"prompt_leaves": 4}},
        {"budget": {"prompt_seconds": 9.0}},
    ):
        assert sizes(**shared) == [2]
        assert sizes(**shared, rollout={"num_rounds": 0}) == [1, 1]
        assert not trees_wait(make_config(settings(**shared, rollout={"num_trees": 1})), CoreRule("contrast"))


@pytest.mark.parametrize("max_live_trees", [1, 2, 3])
def test_trees_that_wait_for_each_other_grow_however_few_may_live(max_live_trees: int) -> None:
    given = settings(selection={"rule": "contrast"}, rollout={"num_trees": 3})
    few = settings(selection={"rule": "contrast"}, rollout={"num_trees": 3, "max_live_trees": max_live_trees})
    assert nodes_of(grow(player_of(few, 1), 3)) == nodes_of(grow(player_of(given, 1), 3))


@pytest.mark.parametrize(("rule", "num_calls"), [("uniform", 1), ("entropy", 1), ("uct", 4), ("contrast", 4)])
def test_rewards_are_asked_for_once_and_before_the_rounds_that_read_them(rule: str, num_calls: int) -> None:
    asked.clear()
    trees = trees_of(grow(player_of(settings(selection={"rule": rule}), 1)))
    assert len(asked) == num_calls * len(trees)
    leaves = [len(tree.rewards) for tree in trees]
    assert leaves == [tree.num_leaves for tree in trees]
    assert sum(map(len, asked)) == sum(leaves)


def broken(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    raise RuntimeError("no judge")


@pytest.mark.parametrize("rule", ["uct", "puct", "contrast", "of one's own"])
def test_a_reward_that_fails_leaves_its_leaf_unscored_and_the_tree_grows_on(rule: str) -> None:
    given = settings(selection=RULES.get(rule), reward={"functions": [f"{__name__}:broken"]})
    for grown in grow(player_of(given), 2):
        assert [failure.kind for failure in grown.failures] == ["reward"] * sum(t.num_leaves for t in grown.trees)
        for tree in grown.trees:
            assert len(tree.rewards) == tree.num_leaves > 3
            assert all(worth.reward is None for worth in tree.rewards.values())


def test_a_rule_that_reads_rewards_is_refused_where_leaves_are_left_out() -> None:
    rollout = {"num_kept_leaves": 3}
    player_of(settings(selection={"rule": "entropy"}, rollout=rollout))
    for rule in ("uct", "contrast", "examples/own_selection.py:undecided"):
        with pytest.raises(
            UserError, match=r"num_kept_leaves: 3 of 7 leaves are kept, but selection\.rule .* reads"
        ) as e:
            player_of(settings(selection={"rule": rule}, rollout=rollout))
        assert "\n" not in str(e.value)


LIMITS = [
    {"prompt_tokens": 120},
    {"prompt_tool_calls": 9},
    {"prompt_leaves": 5},
    {"prompt_tokens": 90, "prompt_leaves": 9},
]


def spent_before(grown: Grown, round_: int) -> dict[str, int]:
    """What the prompt's trees took in the rounds before."""
    nodes = [node for tree in grown.trees for node in tree_record(tree).nodes if 0 <= node.get("round", -1) < round_]
    return {
        "prompt_tokens": sum(end - start for node in nodes for start, end in node["sampled"]),
        "prompt_tool_calls": sum(node["num_tool_calls"] for node in nodes),
        "prompt_leaves": sum(node["status"] != "open" for node in nodes),
    }


@pytest.mark.parametrize("schedule", ["free", "lock-step"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_no_round_starts_once_a_budget_is_reached_whatever_comes_first(limits: dict[str, int], schedule: str) -> None:
    given = settings(budget=limits, rollout={"schedule": schedule})
    one, other = (grow(player_of(given, order)) for order in (1, -1))
    assert_the_same(one, other)
    ends = set()
    for grown in one:
        last = max(node["round"] for tree in grown.trees for node in tree_record(tree).nodes[1:])
        ends.add(last)
        for round_ in range(1, last + 1):
            before = spent_before(grown, round_)
            assert all(before[name] < limit for name, limit in limits.items())
        after = spent_before(grown, last + 1)
        assert last == 3 or any(after[name] >= limit for name, limit in limits.items())
        assert after["prompt_leaves"] <= limits.get("prompt_leaves", 14)
    assert ends != {3}


def test_leaves_that_are_left_are_dealt_in_turn() -> None:
    for grown in grow(player_of(settings(budget={"prompt_leaves": 9}, rollout={"num_trees": 3}))):
        assert [tree.num_leaves for tree in grown.trees] == [3, 3, 3]
    for grown in grow(player_of(settings(budget={"prompt_leaves": 8}, rollout={"num_trees": 3}))):
        assert [tree.num_leaves for tree in grown.trees] == [3, 3, 2]


def test_first_chains_always_run_and_seconds_that_are_over_end_the_growth() -> None:
    for limits in ({"prompt_seconds": 1e-9}, {"prompt_tokens": 1}, {"prompt_leaves": 1}):
        for grown in grow(player_of(settings(budget=limits)), 2):
            assert [tree.num_leaves for tree in grown.trees] == [1, 1]


def test_the_tree_file_says_what_a_tree_took() -> None:
    for tree in trees_of(grow(player_of(settings(), 1))):
        record = tree_record(tree)
        spent = (record.meta or {})["spent"]
        assert spent["tokens"] == sum(end - start for node in record.nodes for start, end in node["sampled"])
        assert spent["tool_calls"] == sum(node["num_tool_calls"] for node in record.nodes)
        assert spent["leaves"] == sum(node["status"] != "open" for node in record.nodes) == 7
        assert spent["seconds"] > 0


def test_the_mean_reward_of_the_steps_before_is_scaled_and_survives_json() -> None:
    assert RewardsSoFar().prior == 0.5
    before = RewardsSoFar().with_more([1.0, 0.0]).with_more([0.0, 0.0])
    assert (before.prior, before.reward_range) == (2 / 6, None)  # beside a 0 and a 1
    wide = before.with_more([-1.0, 3.0])
    assert wide.reward_range == (-1.0, 3.0)
    assert wide.prior == pytest.approx(((1 + 2 + 1) / 8 + 1) / 4)
    assert RewardsSoFar(*json.loads(json.dumps(astuple(wide)))) == wide


def test_what_the_run_has_seen_before_changes_what_contrast_draws() -> None:
    def after(rewards: list[float]) -> list[list[dict[str, Any]]]:
        player = player_of(settings(selection={"rule": "contrast", "kappa": 50}))
        player.rewards_so_far = RewardsSoFar().with_more(rewards)
        return nodes_of(grow(player))

    assert after([0.0, 1.0]) == after([])
    assert after([1.0] * 9 + [0.0]) != after([])


def test_a_round_counts_in_trees_that_it_does_not_expand_too() -> None:
    """Rounds say what was drawn before what, across the trees of a prompt: `causal` relies on it."""
    player = player_of(settings())
    grove = Grove(player, Prompt(0, "p0", Task("question 0")), [0, 1])

    async def grow_by_hand() -> None:
        await grove.plant()
        await grove.first_chains()
        await grove.expand([[grove.trees[0].root], []])
        await grove.expand([[], [grove.trees[1].root]])
        await grove.close()

    asyncio.run(grow_by_hand())
    rounds = [{turn.key[0] for node, turn in tree.turns.items() if node != tree.root} for tree in grove.trees]
    assert rounds == [{0, 1}, {0, 2}]
