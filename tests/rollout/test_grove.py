"""What a prompt's trees become depends on their keys alone, whatever chooses the nodes and whatever limits them."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.collect import Grown, collect
from treegrpo_cli.rollout.forest import join
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.trees.forest import to_forest
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


@pytest.mark.parametrize("schedule", ["free", "lock-step"])
def test_opposite_orders_of_arrival_grow_the_same_trees(schedule: str) -> None:
    given = settings(rollout={"schedule": schedule})
    assert_the_same(*(grow(player_of(given, order)) for order in (1, -1)))
