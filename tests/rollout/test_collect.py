"""What fails outside of us is data in its group; what fails in us ends the rollout, and closing never hangs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import ToolError
from treegrpo_cli.rollout import collect as module
from treegrpo_cli.rollout.collect import Grown, collect
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.types import Action, Message, NodeStatus, StepResult, Task

from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
Step = Callable[[str], Coroutine[Any, Any, None]]


class EchoWorld:
    """Says back what it is told; `on_reset` and `on_step` may do worse."""

    tools = ()
    num_checks = num_closed = 0

    def __init__(self) -> None:
        self.on_reset: Step = self.nothing
        self.on_step: Step = self.nothing

    async def nothing(self, text: str) -> None:
        pass

    async def check(self) -> None:
        self.num_checks += 1

    async def close(self) -> None:
        self.num_closed += 1

    async def reset(self, task: Task) -> tuple[str, list[Message]]:
        await self.on_reset(task.question)
        return "", [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        await self.on_step(action.text)
        said = state + action.text
        return said, StepResult(({"role": "user", "content": "again"},), done="<answer>" in action.text)


def zero_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def failing_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    raise RuntimeError("no judge")


@pytest.fixture
def config() -> Config:
    return make_config(
        {
            "environment": {"name": f"{__name__}:EchoWorld", "tool_retries": 0},
            "reward": {"functions": [f"{__name__}:zero_reward"]},
            "rollout": {"max_turns": 3, "num_trees": 2},
        }
    )


@pytest.fixture
def world(config: Config) -> World:
    return World(config, TOKENIZER)


def make_player(world: World, config: Config, **kwargs: Any) -> Player:
    return Player(world, HashSampler(TOKENIZER, **kwargs), config)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(i, f"p{i}", Task(f"question {i}")) for i in range(count)]


async def collected(player: Player, count: int, **kwargs: Any) -> list[Grown]:
    groups = [grown async for grown in collect(player, prompts(count), 2, **kwargs)]
    return sorted(groups, key=lambda grown: grown.prompt.number)


def test_a_reset_that_fails_leaves_its_prompt_without_trees_and_the_others_alone(world: World, config: Config) -> None:
    async def fail_on_one(question: str) -> None:
        if question == "question 1":
            raise ConnectionError("no sandbox")

    world.environment.on_reset = fail_on_one
    groups = asyncio.run(collected(make_player(world, config), 3))
    assert [len(grown.trees) for grown in groups] == [2, 0, 2]
    [failure] = groups[1].failures
    assert (failure.kind, failure.prompt_id) == ("reset", "p1")
    assert "no sandbox" in failure.reason
    assert [grown.failed for grown in groups] == [False, True, False]


def test_a_tool_that_fails_is_counted_and_its_branch_closed(world: World, config: Config) -> None:
    async def fail_on_rome(text: str) -> None:
        if "rome" in text:
            raise ToolError("no route")

    world.environment.on_step = fail_on_rome
    groups = asyncio.run(collected(make_player(world, config), 4))
    closed = 0
    for grown in groups:
        assert not grown.failed
        assert len(grown.trees) == 2
        for tree in grown.trees:
            broken = [turn for turn in tree.turns.values() if turn.status is NodeStatus.ERROR]
            mine = [f for f in grown.failures if f.tree_id == tree.tree_id]
            assert [(f.kind, f.prompt_id, f.reason) for f in mine] == [
                ("tool", grown.prompt.prompt_id, "no route") for _ in broken
            ]
            closed += len(broken)
    assert closed > 3


def test_a_reward_that_raises_leaves_kept_leaves_without_reward_and_a_failure_each(config: Config) -> None:
    failing = config.model_copy(
        update={"reward": config.reward.model_copy(update={"functions": [f"{__name__}:failing_reward"]})}
    )
    groups = asyncio.run(collected(make_player(World(failing, TOKENIZER), failing), 2))
    for grown in groups:
        leaves = [leaf for tree in grown.trees for leaf in tree.rewards.values()]
        assert len(leaves) == 6
        assert all(leaf.reward is None for leaf in leaves)
        assert [failure.kind for failure in grown.failures] == ["reward"] * 6
        assert all("no judge" in failure.reason for failure in grown.failures)
        assert not grown.failed


class Cancelling(HashSampler):
    """Is cancelled from inside in its fourth turn, as code that meddles with tasks would be."""

    async def sample(self, *args: Any, **kwargs: Any) -> Any:
        if len(self.contexts) == 3:
            raise asyncio.CancelledError
        return await super().sample(*args, **kwargs)


@pytest.mark.parametrize("num_rounds", [0, 1])
def test_a_group_that_comes_short_of_a_tree_is_an_error(world: World, config: Config, num_rounds: int) -> None:
    short = config.model_copy(update={"rollout": config.rollout.model_copy(update={"num_rounds": num_rounds})})
    player = Player(world, Cancelling(TOKENIZER), short)
    with pytest.raises(RuntimeError, match=r"prompt p.* cancelled by what it ran"):
        asyncio.run(collected(player, 3))


def test_an_error_of_whoever_takes_the_trees_is_raised(world: World, config: Config) -> None:
    def full(tree: Tree) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(collected(make_player(world, config), 3, on_tree=full))


def test_an_error_of_the_prompts_is_raised(world: World, config: Config) -> None:
    def broken() -> Any:
        yield prompts(1)[0]
        raise OSError("unreadable")

    async def read() -> list[Grown]:
        return [grown async for grown in collect(make_player(world, config), broken(), 2)]

    with pytest.raises(OSError, match="unreadable"):
        asyncio.run(read())


def test_groups_whose_trees_are_all_finished_come_out_empty(world: World, config: Config) -> None:
    finished = {("p0", 0), ("p0", 1), ("p1", 1)}
    groups = asyncio.run(collected(make_player(world, config), 3, finished=finished))
    assert [[tree.tree_id for tree in grown.trees] for grown in groups] == [[], [0], [0, 1]]
    assert not any(grown.failed for grown in groups)


def test_a_world_is_checked_once_and_closed_once_whoever_plays_in_it(world: World, config: Config) -> None:
    async def twice() -> None:
        for player in (make_player(world, config), make_player(world, config)):
            await collected(player, 1)
        await world.close()
        await world.close()

    asyncio.run(twice())
    assert (world.environment.num_checks, world.environment.num_closed) == (1, 1)


async def forever(_: str) -> None:
    await asyncio.Event().wait()


async def waiting(groups: AsyncIterator[Grown]) -> asyncio.Task[Grown]:
    task = asyncio.ensure_future(anext(groups))
    for _ in range(10):
        await asyncio.sleep(0)
    return task


def test_closing_while_somebody_waits_for_the_next_group_and_closing_twice_are_fine(
    world: World, config: Config
) -> None:
    world.environment.on_step = forever

    async def close_twice() -> None:
        groups = collect(make_player(world, config), prompts(3), 2)
        reader = await waiting(groups)
        await asyncio.gather(groups.aclose(), groups.aclose())
        await groups.aclose()
        reader.cancel()
        with pytest.raises(StopAsyncIteration):
            await anext(groups)
        assert asyncio.all_tasks() <= {asyncio.current_task(), reader}

    asyncio.run(close_twice())


class Stubborn(HashSampler):
    """Takes no cancelling for an answer, until it is released."""

    async def sample(self, *args: Any, **kwargs: Any) -> Any:
        self.num_started = getattr(self, "num_started", 0) + 1
        self.release = getattr(self, "release", None) or asyncio.Event()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue
        raise asyncio.CancelledError


async def started(sampler: Stubborn) -> None:
    while getattr(sampler, "num_started", 0) < 2:
        await asyncio.sleep(0.001)


def test_cancelling_the_reader_again_while_it_closes_ends_it(world: World, config: Config) -> None:
    sampler = Stubborn(TOKENIZER)

    async def read() -> None:
        async with aclosing(collect(Player(world, sampler, config), prompts(1), 2)) as groups:
            async for _ in groups:
                pass

    async def cancel_twice() -> None:
        reader = asyncio.create_task(read())
        await started(sampler)
        for _ in range(2):
            reader.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await reader
        sampler.release.set()

    asyncio.run(cancel_twice())


def test_a_tree_that_refuses_to_end_is_left_behind(
    world: World, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ABANDON_S", 0.01)
    sampler = Stubborn(TOKENIZER)

    async def close() -> None:
        groups = collect(Player(world, sampler, config), prompts(1), 2)
        reader = asyncio.ensure_future(anext(groups))
        await started(sampler)
        await groups.aclose()
        sampler.release.set()
        reader.cancel()

    asyncio.run(close())
    assert "2 trees did not end" in caplog.text


def test_a_reader_whose_loop_was_interrupted_can_be_thrown_away(world: World, config: Config) -> None:
    world.environment.on_step = forever

    async def read() -> None:
        async with aclosing(collect(make_player(world, config), prompts(1), 2)) as groups:
            async for _ in groups:
                pass

    async def watched(work: Coroutine[Any, Any, None]) -> None:
        await work

    def interrupt() -> None:
        raise KeyboardInterrupt

    loop, work = asyncio.new_event_loop(), read()
    task = loop.create_task(watched(work))
    loop.call_later(0.02, interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    work.close()
    left = asyncio.all_tasks(loop)
    assert len(left) >= 3  # the reader, and two trees with the chains that they had begun
    for each in left:
        each.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    assert task.done()
    loop.close()
