"""An environment's keys of its states: from its own method to anchor's comparisons, in training and from the file."""

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treegrpo_cli._core import NO_PARENT, Forest
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.forest import join
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.types import NodeStatus, Task

from tests import reference
from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
PURE = """
from treegrpo_cli.types import StepResult
class Own:
    tools = ()
    def reset(self, task):
        return (), [{"role": "user", "content": task.question}]
    def step(self, state, action):
        state = (*state, action.text)
        return state, StepResult(({"role": "user", "content": "heard " + action.text},), reward=len(action.text) % 3)
    def state_key(self, state):
        BODY
"""
CHANGING = """
from treegrpo_cli.types import StepResult
class Own:
    tools = ()
    def reset(self, task):
        self.state = ()
        return [{"role": "user", "content": task.question}]
    def step(self, action):
        self.state = (*self.state, action.text)
        return StepResult(({"role": "user", "content": "heard " + action.text},), reward=len(action.text) % 3)
    def state_key(self):
        state = self.state
        BODY
"""
LENGTH = "return len(state) % 2"


def grow(path: Path, world: str, body: str) -> tuple[list[Tree], list[str]]:
    """Trees of two prompts, and what failed."""
    (path / "own.py").write_text(world.replace("BODY", body))
    settings = {"environment": {"name": f"{path}/own.py:Own"}, "reward": {"functions": ["environment"]}}
    config = make_config({**settings, "rollout": {"max_turns": 3, "num_expansions": 2}})

    async def grown() -> tuple[list[Tree], list[str]]:
        player = Player(World(config, TOKENIZER), HashSampler(TOKENIZER), config)
        groups = [group async for group in collect(player, [Prompt(i, f"p{i}", Task(f"{i}?")) for i in range(2)], 2)]
        failures = [failure.reason for group in groups for failure in group.failures]
        return [tree for group in groups for tree in group.trees], failures

    return asyncio.run(grown())


def reference_trees(forest: Forest) -> tuple[list[Any], list[Any]]:
    """The forest as the reference has it, and its nodes by id; the key is that of the length of the path before."""
    columns: Any = forest.columns()
    nodes: list[Any] = []
    trees = [{"prompt": int(prompt), "root": None} for prompt in columns["prompt"]]
    for number, parent in enumerate(columns["parent"].tolist()):
        span = slice(*columns["token_start"][number : number + 2].astype(int).tolist())
        tokens = zip(*(columns[name][span].tolist() for name in ("token_ids", "sampled", "logprobs")), strict=True)
        reward = float(columns["reward"][number])
        node = {"children": [], "reward": None if np.isnan(reward) else reward, "tokens": list(tokens)}
        nodes.append(node)
        if parent == NO_PARENT:
            trees[int(columns["tree"][number])]["root"] = node
        else:
            node["state_key"] = 1 + (int(columns["depth"][number]) - 1) % 2
            nodes[parent]["children"].append(node)
    return trees, nodes


@pytest.mark.parametrize("world", [PURE, CHANGING], ids=["pure", "changing in place"])
def test_anchor_compares_the_turns_that_a_users_environment_calls_alike(tmp_path: Path, world: str) -> None:
    trees, _ = grow(tmp_path, world, LENGTH)
    forest, again = join(trees), to_forest([tree_record(tree) for tree in trees])
    options = {"center": "mean", "scale": "none", "ddof": 1, "eps": 1e-6, "singleton": "zero"}
    options |= {"weight": 1.0, "discount": 1.0}
    dicts, nodes = reference_trees(forest)
    expected: dict[int, float] = {}
    for prompt in {tree["prompt"] for tree in dicts}:
        expected |= reference.anchored([tree for tree in dicts if tree["prompt"] == prompt], options)
    for scores in (scored.score("anchor", {"scale": "none"}) for scored in (forest, again)):
        assert scores.node_advantage is not None
        for node, advantage in zip(nodes, scores.node_advantage.tolist(), strict=True):
            if id(node) in expected:
                assert advantage == pytest.approx(expected[id(node)], abs=1e-12)
    without = Forest.from_columns(
        **{
            name: column
            for name, column in forest.columns().items()
            if name not in ("root", "depth", "state_key", "tool_call")
        }  # type: ignore[arg-type]
    ).score("anchor", {"scale": "none"})
    assert without.node_advantage is not None
    assert not np.allclose(without.node_advantage, scores.node_advantage, equal_nan=True), "keys change nothing"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return None", "environment: state_key must return a str, bytes or an int, got a NoneType"),
        ("return True", "environment: state_key must return a str, bytes or an int, got a bool"),
        ("raise KeyError('gone')", "state_key: .*gone.*"),
    ],
)
def test_a_key_that_is_none_closes_its_own_branch(tmp_path: Path, body: str, reason: str) -> None:
    trees, failures = grow(tmp_path, PURE, f"if state:\n            {body}\n        return 'start'")
    assert failures
    for told in failures:
        assert re.fullmatch(reason, told), told
    turns = [turn for tree in trees for turn in tree.turns.values() if turn.depth]
    assert {turn.status for turn in turns} == {NodeStatus.ERROR}
    nodes = [node for tree in trees for node in tree_record(tree).nodes[1:]]
    assert {node["state_key"] for node in nodes} == {nodes[0]["state_key"]}
    (tmp_path / "other").mkdir()
    no_trees, at_start = grow(tmp_path / "other", PURE, body)
    assert no_trees == []
    assert len(at_start) >= 2
