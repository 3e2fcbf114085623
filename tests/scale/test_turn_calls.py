"""Turns of one driver's loops at an engine's actor: how many calls they take, and that each gets its own answer."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from treegrpo_cli.scale.engine_actor import EngineActor
from treegrpo_cli.scale.turn_calls import Asked, TurnCalls
from treegrpo_cli.types import Completion, SamplingParams

PARAMS = SamplingParams(max_tokens=4)


class Sampler:
    """Turns that end when the test says so; a context of nothing is refused."""

    def __init__(self) -> None:
        self.running: dict[int, asyncio.Future[None]] = {}
        self.num_dropped = 0

    async def sample(self, context: Sequence[int], params: SamplingParams, seed: int) -> Completion:
        if not len(context):
            raise ValueError("got a context of 0 tokens")
        self.running[seed] = asyncio.get_running_loop().create_future()
        try:
            await self.running[seed]
        except asyncio.CancelledError:
            self.num_dropped += 1
            raise
        finally:
            del self.running[seed]
        return Completion([*context, seed], [-1.0], str(seed), "stop")

    def end(self, *seeds: int) -> None:
        for seed in seeds:
            self.running[seed].set_result(None)


class Method:
    """A method of an actor in this process, called as Ray's are."""

    def __init__(self, method: Callable[..., Any], handle: "Handle") -> None:
        self._method, self._handle = method, handle

    def remote(self, *arguments: Any) -> "asyncio.Task[Any]":
        self._handle.num_calls += 1
        return asyncio.ensure_future(self._called(arguments))

    async def _called(self, arguments: tuple[Any, ...]) -> Any:
        self._handle.num_waiting += 1
        try:
            return await self._method(*arguments)
        finally:
            self._handle.num_waiting -= 1


class Handle:
    def __init__(self) -> None:
        self.actor = EngineActor()
        self.sampler = self.actor.sampler = Sampler()  # type: ignore[assignment]
        self.num_calls = self.num_waiting = 0

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self.actor, name), self)


async def quiet() -> None:
    """Let all that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


def asking(calls: TurnCalls, seeds: Sequence[int]) -> "list[asyncio.Task[Completion]]":
    return [asyncio.ensure_future(calls.sample([7], PARAMS, seed)) for seed in seeds]


def test_turns_that_are_asked_for_together_take_one_call_and_each_gets_its_own_answer() -> None:
    async def run() -> None:
        handle = Handle()
        calls = TurnCalls(handle, 0)
        turns = asking(calls, range(50))
        await quiet()
        assert (handle.num_calls, len(handle.sampler.running)) == (1, 50)
        handle.sampler.end(*range(49, 9, -1))
        await quiet()
        assert [turn.done() for turn in turns] == [False] * 10 + [True] * 40
        assert handle.num_calls == 2  # one more, for those that are left
        handle.sampler.end(*range(10))
        assert [turn.text for turn in await asyncio.gather(*turns)] == [str(seed) for seed in range(50)]
        await quiet()
        assert (handle.num_calls, handle.num_waiting) == (2, 0)

    asyncio.run(run())


def test_no_more_calls_wait_than_turns_however_turns_come_and_go() -> None:
    async def run() -> None:
        handle = Handle()
        calls = TurnCalls(handle, 0)
        turns = {}
        for seed in range(60):
            turns[seed] = asking(calls, [seed])[0]  # one by one ...
            await quiet()
            if seed % 6 == 5:  # ... and they end by threes
                ended = sorted(handle.sampler.running)[:3]
                handle.sampler.end(*ended)
                await quiet()
                assert all(turns[number].done() for number in ended)
            assert 1 <= handle.num_waiting <= len(handle.sampler.running)
        handle.sampler.end(*list(handle.sampler.running))
        await asyncio.gather(*turns.values())
        await quiet()
        assert handle.num_waiting == 0
        assert handle.actor._answers == {}

    asyncio.run(run())


def test_a_turn_that_is_refused_harms_no_other_of_its_call() -> None:
    async def run() -> None:
        handle = Handle()
        calls = TurnCalls(handle, 0)
        refused = asyncio.ensure_future(calls.sample([], PARAMS, 0))
        (other,) = asking(calls, [1])
        with pytest.raises(ValueError, match="got a context of 0 tokens") as raised:
            await refused
        assert "in sample" in str(raised.value.__cause__)  # where it was raised there
        handle.sampler.end(1)
        assert (await other).token_ids == [7, 1]

    asyncio.run(run())


def test_a_cancelled_turn_is_dropped_wherever_it_is() -> None:
    async def run() -> None:
        handle = Handle()
        calls = TurnCalls(handle, 0)
        sampled, other = asking(calls, [0, 1])
        await quiet()
        (unsent,) = asking(calls, [2])
        await asyncio.sleep(0)
        for turn in (sampled, unsent):
            turn.cancel()
        await quiet()
        assert handle.sampler.num_dropped == 1
        assert set(handle.sampler.running) == {1}
        handle.sampler.end(1)
        assert (await other).text == "1"

    asyncio.run(run())


def test_a_turn_that_is_dropped_before_its_call_comes_is_not_begun() -> None:
    async def run() -> None:
        handle = Handle()
        await handle.actor.drop(0, 5)
        assert await handle.actor.sample(0, [Asked(5, [7], PARAMS, 0)]) == []
        await quiet()
        assert handle.sampler.running == {}
        assert handle.actor._answers == {}

    asyncio.run(run())


def test_all_who_wait_hear_of_the_end_of_the_process() -> None:
    async def run() -> None:
        handle = Handle()
        calls = TurnCalls(handle, 0)

        async def dies(*_: Any) -> None:
            await asyncio.sleep(0)
            raise ConnectionError("gone")

        first = asking(calls, [0, 1])
        await quiet()
        handle.actor.sample = dies  # type: ignore[method-assign, assignment]
        second = asking(calls, [2])
        found = await asyncio.gather(*first, *second, return_exceptions=True)
        assert [str(error) for error in found] == ["gone"] * 3
        handle.sampler.end(0, 1)
        await quiet()

    asyncio.run(run())


def test_what_a_loop_that_was_left_still_waits_for_takes_no_answer_of_the_next() -> None:
    async def run() -> None:
        handle = Handle()
        left = asking(TurnCalls(handle, 0), [0])
        await quiet()
        calls = TurnCalls(handle, 1)  # as of the next loop
        (turn,) = asking(calls, [1])
        await quiet()
        handle.sampler.end(1)
        assert (await turn).text == "1"
        assert not left[0].done()
        handle.sampler.end(0)
        await asyncio.gather(*left)

    asyncio.run(run())
