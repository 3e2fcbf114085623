"""What trees do with a world: close its states, add up its rewards, show it cut turns, count its failures."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout import world
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.types import Task

from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()

OWN = """
from treegrpo_cli.types import StepResult

made = []

class State:
    def __init__(self):
        self.num_closed = 0
        made.append(self)
    def close(self):
        self.num_closed += 1

class Own:
    tools = ()
    num_closed = 0
    def __init__(self, takes_cut_turns: bool = False):
        self.takes_cut_turns = takes_cut_turns
        self.seen = []
    def reset(self, task):
        return State(), [{"role": "user", "content": task.question}]
    def step(self, state, action):
        self.seen.append(action)
        if "rome" in action.text:
            raise ValueError("no such town")
        reward = 0.5 if "lisbon" in action.text else None
        return State(), StepResult(({"role": "user", "content": "go on"},), reward=reward, num_tool_calls=1)
    def close(self):
        self.num_closed += 1
"""


class Played:
    """A rollout of `num_prompts` prompts in a world of its own."""

    def __init__(self, path: Path, settings: dict[str, Any], num_prompts: int = 3, **options: Any) -> None:
        (path / "own.py").write_text(OWN)
        environment = {"name": f"{path / 'own.py'}:Own", "options": options, **settings.pop("environment", {})}
        config = make_config(
            {
                "environment": environment,
                "reward": {"functions": ["environment"]},
                "rollout": {"max_turns": 3, **settings},
            }
        )
        self.world = World(config, TOKENIZER)
        self.environment: Any = self.world.environment
        self.made = __import__("sys").modules[str(path / "own.py")].made
        self.player = Player(self.world, HashSampler(TOKENIZER), config)
        self.num_prompts = num_prompts
        self.trees: list[Tree] = []
        self.failures: list[Any] = []

    def play(self) -> None:
        asyncio.run(self._play())

    async def _play(self) -> None:
        prompts = [Prompt(i, f"p{i}", Task(f"Number {i}?")) for i in range(self.num_prompts)]
        async for grown in collect(self.player, prompts, 2):
            self.trees += grown.trees
            self.failures += grown.failures
        for _ in range(2):
            await self.world.close()


def test_every_state_is_closed_once_when_its_tree_is_done_and_the_world_at_the_end(tmp_path: Path) -> None:
    played = Played(tmp_path, {"num_expansions": 3})
    played.play()
    assert len(played.made) > 6
    assert {state.num_closed for state in played.made} == {1}
    assert played.environment.num_closed == 1


def test_the_state_of_a_prompt_that_does_not_fit_is_closed_too(tmp_path: Path) -> None:
    played = Played(tmp_path, {"max_prompt_tokens": 2})
    played.play()
    assert [failure.kind for failure in played.failures] == ["prompt"] * 3
    assert {state.num_closed for state in played.made} == {1}


def test_the_rewards_of_a_paths_steps_add_up(tmp_path: Path) -> None:
    played = Played(tmp_path, {"num_expansions": 4})
    played.play()
    seen = set()
    for tree in played.trees:
        nodes = tree_record(tree).nodes
        for node in nodes:
            assert node.get("env_reward") == (0.5 if "lisbon" in node["text"] and node["parent"] is not None else None)
            if node["reward"] is not None:
                path, earned = node, 0.0
                while path["parent"] is not None:
                    earned, path = earned + path.get("env_reward", 0.0), nodes[path["parent"]]
                assert node["reward"] == earned
                seen.add(earned)
    assert len(seen) > 1


def test_what_a_step_raises_is_counted_in_its_node_and_costs_a_turn(tmp_path: Path) -> None:
    played = Played(tmp_path, {"num_expansions": 4})
    played.play()
    nodes = [node for tree in played.trees for node in tree_record(tree).nodes if node["parent"] is not None]
    stats = RolloutStats()
    stats.add_group([tree_record(tree) for tree in played.trees])
    for node in nodes:
        if "rome" in node["text"] and node["status"] == "open":
            assert "Error: ValueError: no such town" in node["observation"]
    assert not played.failures
    raised = [node for node in nodes if "rome" in node["text"]]
    assert [node["num_failed_tool_calls"] for node in raised] == [1] * len(raised)
    assert stats.num_failed_tool_calls == len(raised) > 0


def test_or_closes_the_branch_with_a_failure_that_has_the_traceback(tmp_path: Path) -> None:
    played = Played(tmp_path, {"num_expansions": 4, "environment": {"tool_errors": "close"}})
    played.play()
    nodes = [node for tree in played.trees for node in tree_record(tree).nodes if node["parent"] is not None]
    failed = [node for node in nodes if node["status"] == "error"]
    assert [node["error"] for node in failed] == ["ValueError: no such town"] * len(failed) != []
    assert [failure.kind for failure in played.failures] == ["tool"] * len(failed)
    assert all(failure.trace[-1] == "ValueError: no such town" for failure in played.failures)


@pytest.mark.parametrize("asked", [False, True])
def test_a_turn_cut_by_its_token_limit_reaches_a_world_that_asks_for_it(tmp_path: Path, asked: bool) -> None:
    played = Played(tmp_path, {"max_turn_tokens": 5, "num_rounds": 0}, takes_cut_turns=asked)
    played.play()
    cut = [action for action in played.environment.seen if action.cut]
    statuses = [node["status"] for tree in played.trees for node in tree_record(tree).nodes[1:]]
    assert bool(cut) == asked
    assert ("truncated_tokens" in statuses) == (not asked)


def test_an_observation_that_cannot_be_written_closes_its_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(tmp_path, {"num_rounds": 0})

    def refuse(*_: Any) -> list[int]:
        raise UserError("chat template: cannot write these messages")

    monkeypatch.setattr(played.world.dialect, "observation_ids", refuse)
    played.play()
    assert {failure.reason for failure in played.failures} == {"chat template: cannot write these messages"}
    assert {tree_record(tree).nodes[1]["status"] for tree in played.trees} == {"error"}


def test_questions_alone_are_played_in_one_turn_and_judged_by_a_reward_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def reward(completions): return [float(len(c)) for c in completions]")
    config = make_config(
        {
            "environment": {"name": "single-turn", "stop": ["</se"]},
            "reward": {"functions": [f"{tmp_path / 'mine.py'}:reward"]},
        }
    )
    player = Player(World(config, TOKENIZER), HashSampler(TOKENIZER), config)
    assert player.params.stop == ("</answer>", "</se")

    async def play() -> list[Tree]:
        return [tree async for grown in collect(player, [Prompt(0, "p", Task("Who?"))], 2) for tree in grown.trees]

    for tree in asyncio.run(play()):
        root, *turns = tree_record(tree).nodes
        assert "Who?" in root["text"]
        assert {(turn["parent"], turn["status"]) for turn in turns} == {(0, "done")}
        assert [turn["reward"] for turn in turns] == [float(len(turn["text"])) for turn in turns]


@pytest.mark.parametrize(
    ("dialect", "engine", "installed", "asked"),
    [
        ("chat", "auto", True, ["cpu"]),
        ("chat", "vllm", True, ["cpu"]),
        ("chat", "auto", False, []),
        ("chat", "transformers", True, []),
        ("inline", "auto", True, []),
    ],
)
def test_the_engines_environment_is_set_before_a_parser_of_vllm_may_be_imported(
    dialect: str, engine: str, installed: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    monkeypatch.setattr(world, "prepare_environment", devices.append)
    monkeypatch.setattr(world, "find_spec", lambda name: name if installed else None)
    config = Config.model_validate(
        {
            "environment": {"name": "calculator", "dialect": dialect},
            "sampler": {"engine": engine},
            "model": {"device": "cpu"},
        }
    )
    monkeypatch.setattr(world, "make_dialect", lambda *_: devices.append("dialect"))
    World(config, TOKENIZER)
    assert devices == [*asked, "dialect"]
