"""A step draws fresh prompts for those that teach nothing: which ones is pure in their rewards, and has a limit."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any
from zlib import crc32

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.collect import Grown
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.step import grow_step
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.rollout.world import World
from treegrpo_cli.types import Action, Message, StepResult, Task

from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()


class SayingWorld:
    """Every turn but an answer is told to go on; prompts whose text begins with `broken` do not start."""

    tools = ()

    async def reset(self, task: Task) -> tuple[str, list[Message]]:
        if task.question.startswith("broken"):
            raise ConnectionError("no sandbox")
        return "", [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        said = state + action.text
        return said, StepResult(({"role": "user", "content": "again"},), done="<answer>" in action.text)


def length_unless_dead(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A prompt that says so gets the same for everything; of another, no two leaves are likely to get the same."""
    pairs = zip(prompts, completions, strict=True)
    return [0.0 if "dead" in prompt else crc32(text.encode()) / 2**32 for prompt, text in pairs]


def config_of(**sections: Any) -> Config:
    tables: dict[str, Any] = {
        "environment": {"name": f"{__name__}:SayingWorld", "tool_retries": 0},
        "reward": {"functions": [f"{__name__}:length_unless_dead"]},
        "rollout": {"max_turns": 3, "num_trees": 2},
        "advantage": {"dead_prompts": "refill"},
        "train": {"prompts_per_step": 3, "max_gen_batches": 3},
    }
    for name, table in sections.items():
        tables[name] = tables.get(name, {}) | table
    return make_config(tables)


def grow(config: Config, kind: Callable[[int], str], **sampler: Any) -> tuple[list[Grown], list[Grown]]:
    """The groups of a step, and the same in the order in which they ended; `kind` names a prompt by its number."""
    player = Player(World(config, TOKENIZER), HashSampler(TOKENIZER, **sampler), config)
    prompts = (Prompt.numbered(number, Task(f"{kind(number)} {number}")) for number in count())
    ended: list[Grown] = []
    return asyncio.run(grow_step(player, prompts, ended.append)), ended


def numbers(step: list[Grown]) -> list[int]:
    return [grown.prompt.number for grown in step]


def first_full(is_alive: Callable[[int], bool], size: int, limit: int) -> list[int]:
    """The definition: the shortest run of numbers from 0 that holds `size` prompts that teach, or `limit` of them."""
    drawn: list[int] = []
    while sum(map(is_alive, drawn)) < size and len(drawn) < limit:
        drawn.append(len(drawn))
    return drawn


def is_odd(number: int) -> bool:
    return number % 2 == 1


@pytest.mark.parametrize(
    ("is_alive", "what"),
    [
        (lambda _: True, "all alive"),
        (lambda _: False, "all dead"),
        (is_odd, "every other one dead"),
        (lambda number: number > 4, "the first batch dead"),
        (lambda number: number != 1, "one dead"),
        (lambda number: number == 8, "the last one alive"),
    ],
)
def test_a_step_is_the_shortest_run_of_prompts_that_holds_enough_alive_ones(
    is_alive: Callable[[int], bool], what: str
) -> None:
    step, _ = grow(config_of(), lambda number: "alive" if is_alive(number) else "dead")
    assert numbers(step) == first_full(is_alive, 3, 9), what
    assert [grown.is_alive for grown in step] == [is_alive(number) for number in numbers(step)]


@pytest.mark.parametrize("dead_prompts", ["keep", "drop"])
def test_without_refill_a_step_draws_its_prompts_and_no_more(dead_prompts: str) -> None:
    step, _ = grow(config_of(advantage={"dead_prompts": dead_prompts}), lambda _: "dead")
    assert numbers(step) == [0, 1, 2]


def test_one_batch_is_the_first_one() -> None:
    step, _ = grow(config_of(train={"prompts_per_step": 3, "max_gen_batches": 1}), lambda _: "dead")
    assert numbers(step) == [0, 1, 2]


def test_a_prompt_that_fails_is_refilled_too() -> None:
    step, _ = grow(config_of(), lambda number: "broken" if number in (0, 3) else "alive")
    assert numbers(step) == [0, 1, 2, 3, 4]
    assert [len(grown.trees) for grown in step] == [0, 2, 2, 0, 2]
    assert [grown.failed for grown in step] == [True, False, False, True, False]


def test_what_a_step_holds_does_not_depend_on_who_was_finished_first() -> None:
    steps, orders = [], set()
    for jitter_seed in range(3):
        step, ended = grow(
            config_of(), lambda number: "alive" if is_odd(number) else "dead", delay_s=0.01, jitter_seed=jitter_seed
        )
        orders.add(tuple(numbers(ended)))
        steps.append([(grown.prompt, [sorted(tree.rewards.items()) for tree in grown.trees]) for grown in step])
    assert len(orders) > 1
    assert [[prompt.number for prompt, _ in step] for step in steps] == [[0, 1, 2, 3, 4, 5]] * 3


def test_groups_are_seen_when_they_end_and_seconds_are_counted() -> None:
    step, ended = grow(config_of(), lambda number: "alive" if is_odd(number) else "dead", delay_s=0.001)
    assert sorted(numbers(ended)) == numbers(step)
    assert sorted(numbers(ended)[:3]) == [0, 1, 2]
    assert all(grown.seconds > 0 for grown in step)
