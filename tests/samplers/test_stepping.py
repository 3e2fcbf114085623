"""Engine and event loop do not starve each other: simulated engines, whose steps do what a test needs."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from treegrpo_cli.free_time import SHORT_S, free_timeout
from treegrpo_cli.samplers.stepping import EngineError, Request, SteppedSampler
from treegrpo_cli.types import Completion, SamplingParams

CONTEXT = [1, 2, 3]


class SimulatedSampler(SteppedSampler):
    """Decodes a token a step for everybody, and calls `on_step` with the step's number."""

    name = "simulated"

    def __init__(self, on_step: Callable[[int], None] = lambda number: None) -> None:
        super().__init__(max_model_len=10**9)
        self.on_step = on_step
        self.left: dict[str, int] = {}
        self.dropped: list[str] = []
        self.num_steps = 0
        self.stepping = False
        self.freed = False

    def add(self, request: Request) -> None:
        assert not self.stepping
        if request.seed < 0:
            raise ValueError("an impossible request")
        self.left[request.request_id] = request.params.max_tokens

    def drop(self, request_id: str) -> None:
        assert not self.stepping
        self.dropped.append(request_id)
        self.left.pop(request_id, None)

    def step(self) -> list[tuple[str, Completion]]:
        self.stepping = True
        self.num_steps += 1
        try:
            self.on_step(self.num_steps)
        finally:
            self.stepping = False
        self.left = {request_id: left - 1 for request_id, left in self.left.items()}
        ended = [request_id for request_id, left in self.left.items() if not left]
        for request_id in ended:
            del self.left[request_id]
        return [(request_id, Completion([7], [0.0], "", "length")) for request_id in ended]

    def weight_shapes(self) -> dict[str, Any]:
        return {}

    def load_weights(self, weights: list[Any]) -> None:
        assert not self.stepping

    def free(self) -> None:
        assert not self.stepping
        self.freed = True


def turn(max_tokens: int, seed: int = 0) -> tuple[list[int], SamplingParams, int]:
    return CONTEXT, SamplingParams(max_tokens), seed


def test_everything_ready_runs_between_two_steps() -> None:
    async def counted() -> list[int]:
        sampler = SimulatedSampler()
        endless = asyncio.create_task(sampler.sample(*turn(10**6)))
        await sampler.sample(*turn(2))
        before = sampler.num_steps
        for _ in range(30):
            await asyncio.sleep(0)
        turns = sampler.num_steps - before
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        other_reader, other_writer = await asyncio.open_connection(sock=there)
        before = sampler.num_steps
        for _ in range(10):
            writer.write(b"who is there?\n")
            other_writer.write((await other_reader.readline()).upper())
            await reader.readline()
        hops = sampler.num_steps - before
        for each in (writer, other_writer):
            each.close()
        endless.cancel()
        await asyncio.gather(endless, return_exceptions=True)
        return [turns, hops]

    assert asyncio.run(counted()) == [0, 0]


def test_requests_that_follow_from_one_step_join_the_next_together() -> None:
    sampler = SimulatedSampler()

    async def chain() -> None:
        for _ in range(5):
            await sampler.sample(*turn(3))
            for _ in range(10):
                await asyncio.sleep(0)

    async def several() -> None:
        await asyncio.gather(*(chain() for _ in range(8)))

    asyncio.run(several())
    assert sampler.num_steps == 5 * 3


def test_a_coroutine_that_never_rests_does_not_stop_the_engine() -> None:
    async def both() -> Completion:
        sampler = SimulatedSampler()
        turn_taken = asyncio.create_task(sampler.sample(*turn(2)))
        while not turn_taken.done():
            await asyncio.sleep(0)
        return turn_taken.result()

    assert asyncio.run(both()).token_ids == [7]


def long_first_step(then: Callable[[int], None]) -> Callable[[int], None]:
    """The engine's first step shows that its steps are long enough to be felt."""

    def on_step(number: int) -> None:
        if number == 1:
            time.sleep(2 * SHORT_S)
        else:
            then(number)

    return on_step


def test_the_loop_goes_on_beside_a_long_step_while_somebody_waits_for_the_world() -> None:
    answered = threading.Event()

    def wait_for_the_answer(_: int) -> None:
        assert answered.wait(20)

    async def tool() -> None:
        async with free_timeout(60):
            while sampler.num_steps < 2:
                await asyncio.sleep(0.001)
            answered.set()

    async def both() -> None:
        await asyncio.gather(sampler.sample(*turn(3)), tool())

    sampler = SimulatedSampler(long_first_step(wait_for_the_answer))
    asyncio.run(both())
    assert sampler.num_steps == 3


def test_a_step_stays_inside_the_loop_where_nobody_waits_for_the_world() -> None:
    threads: set[threading.Thread] = set()
    sampler = SimulatedSampler(long_first_step(lambda number: threads.add(threading.current_thread())))
    asyncio.run(sampler.sample(*turn(4)))
    assert threads == {threading.current_thread()}


async def waiting_for_the_world() -> None:
    async with free_timeout(60):
        await asyncio.sleep(60)


async def step_beside(sampler: SimulatedSampler, *tasks: asyncio.Task[Any], steps: int = 2) -> None:
    while sampler.num_steps < steps:
        await asyncio.sleep(0.001)


def test_a_request_cancelled_beside_a_step_is_dropped_behind_it_and_one_that_came_meanwhile_joins() -> None:
    release = threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            assert release.wait(20)

    async def both() -> None:
        world = asyncio.create_task(waiting_for_the_world())
        stays, goes = (asyncio.create_task(sampler.sample(*turn(5))) for _ in range(2))
        await step_beside(sampler)
        comes, never = (asyncio.create_task(sampler.sample(*turn(5))) for _ in range(2))
        await asyncio.sleep(0.001)
        goes.cancel()
        never.cancel()
        await asyncio.gather(goes, never, return_exceptions=True)
        assert sampler.dropped == []
        assert sampler.stepping
        release.set()
        await asyncio.gather(stays, comes)
        world.cancel()
        await asyncio.gather(world, return_exceptions=True)

    sampler = SimulatedSampler(long_first_step(hold))
    asyncio.run(both())
    assert sampler.dropped == ["2"]
    assert sampler.num_steps == 2 + 5
    assert sampler.left == {}


def test_a_request_that_ends_in_the_step_in_which_it_was_cancelled_harms_nobody() -> None:
    release = threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            assert release.wait(20)

    async def both() -> None:
        world = asyncio.create_task(waiting_for_the_world())
        goes, stays = (asyncio.create_task(sampler.sample(*turn(tokens))) for tokens in (2, 4))
        await step_beside(sampler)
        goes.cancel()
        await asyncio.gather(goes, return_exceptions=True)
        release.set()
        assert (await stays).token_ids == [7]
        world.cancel()
        await asyncio.gather(world, return_exceptions=True)

    sampler = SimulatedSampler(long_first_step(hold))
    asyncio.run(both())
    assert sampler.dropped == ["1"]
    assert sampler.num_steps == 4


def test_a_loop_that_is_torn_down_beside_a_step_leaves_an_engine_for_the_next_one() -> None:
    def slow(_: int) -> None:
        time.sleep(0.05)

    async def abandoned() -> None:
        world = asyncio.create_task(waiting_for_the_world())
        turns = [asyncio.create_task(sampler.sample(*turn(100))) for _ in range(3)]
        await step_beside(sampler, world, *turns)

    sampler = SimulatedSampler(long_first_step(slow))
    asyncio.run(abandoned())
    assert sampler.left == {}
    assert asyncio.run(sampler.sample(*turn(1))).token_ids == [7]
    sampler.update_weights([], 3)
    assert sampler.policy_version == 3


def test_new_weights_wait_for_a_step_whose_requests_were_all_cancelled() -> None:
    release = threading.Event()

    def hold(_: int) -> None:
        assert release.wait(20)

    async def updated() -> None:
        world = asyncio.create_task(waiting_for_the_world())
        turns = [asyncio.create_task(sampler.sample(*turn(100))) for _ in range(2)]
        await step_beside(sampler)
        for each in (*turns, world):
            each.cancel()
        await asyncio.gather(*turns, world, return_exceptions=True)
        assert sampler.stepping
        threading.Timer(0.02, release.set).start()
        sampler.update_weights([], 1)
        assert sampler.left == {}
        assert (await sampler.sample(*turn(2))).policy_version == 1

    sampler = SimulatedSampler(long_first_step(hold))
    asyncio.run(updated())


def test_closing_waits_for_a_step_that_runs_beside_the_loop() -> None:
    async def closed() -> None:
        world = asyncio.create_task(waiting_for_the_world())
        taken = asyncio.create_task(sampler.sample(*turn(100)))
        await step_beside(sampler)
        sampler.close()
        with pytest.raises(EngineError, match="closed"):
            await taken
        world.cancel()
        await asyncio.gather(world, return_exceptions=True)

    sampler = SimulatedSampler(long_first_step(lambda number: time.sleep(0.05)))
    asyncio.run(closed())
    assert sampler.freed


def test_an_engine_that_dies_beside_the_loop_fails_everybody() -> None:
    def die(_: int) -> None:
        raise MemoryError("out of pages")

    async def several() -> list[Any]:
        world = asyncio.create_task(waiting_for_the_world())
        errors = await asyncio.gather(*(sampler.sample(*turn(9)) for _ in range(3)), return_exceptions=True)
        world.cancel()
        return errors

    sampler = SimulatedSampler(long_first_step(die))
    assert [str(error) for error in asyncio.run(several())] == [
        "the simulated engine died: MemoryError: out of pages"
    ] * 3
    assert sampler.freed


def test_a_request_that_the_engine_refuses_fails_alone() -> None:
    async def several() -> list[Any]:
        requests = (sampler.sample(*turn(2, seed)) for seed in (0, -1, 1))
        return await asyncio.gather(*requests, return_exceptions=True)

    sampler = SimulatedSampler()
    first, second, third = asyncio.run(several())
    assert first.token_ids == third.token_ids == [7]
    assert isinstance(second, ValueError)


def test_counts_are_those_since_they_were_last_taken() -> None:
    sampler = SimulatedSampler(lambda number: time.sleep(0.002))

    async def several() -> None:
        await asyncio.gather(*(sampler.sample(*turn(tokens)) for tokens in (2, 5)))

    asyncio.run(several())
    counts = sampler.take_counts()
    assert (counts.num_steps, counts.generated_tokens) == (5, 2)  # a simulated turn has one token
    assert counts.step_s >= 5 * 0.002
    assert sampler.take_counts().num_steps == 0
