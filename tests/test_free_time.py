"""A time limit counts the seconds in which the event loop was free, and no others."""

import asyncio
import time

import pytest
from treegrpo_cli.free_time import busy, free_seconds, free_timeout, num_waiting


def test_an_answer_that_came_while_the_loop_was_blocked_is_in_time() -> None:
    async def answered() -> str:
        async with free_timeout(0.05):
            answer = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.02, answer.set_result, "here")
            with busy():
                time.sleep(0.1)
            for _ in range(5):  # an answer takes a few turns of the loop on its way
                await asyncio.sleep(0)
            return await answer

    assert asyncio.run(answered()) == "here"


def test_blocked_seconds_do_not_count_and_free_ones_do() -> None:
    async def late() -> float:
        async def wait() -> None:
            async with free_timeout(0.05):
                for _ in range(4):
                    with busy():
                        time.sleep(0.03)
                    await asyncio.sleep(0.005)
                await asyncio.sleep(60)

        start = time.monotonic()
        with pytest.raises(TimeoutError):
            await wait()
        return time.monotonic() - start

    assert asyncio.run(late()) >= 4 * 0.03 + 0.05


def test_what_blocks_without_saying_so_costs_others_nothing_once() -> None:
    async def answered() -> str:
        async with free_timeout(0.02):
            time.sleep(0.1)
            await asyncio.sleep(0.02)
            return "here"

    assert asyncio.run(answered()) == "here"


def test_the_limit_tells_its_own_timeout_from_the_bodys() -> None:
    async def fails() -> bool:
        with pytest.raises(TimeoutError, match="the body's own"):
            async with free_timeout(60) as limit:
                raise TimeoutError("the body's own")
        return limit.expired()

    assert not asyncio.run(fails())


def test_cancelling_from_outside_is_no_timeout() -> None:
    async def cancelled() -> None:
        async def wait() -> None:
            async with free_timeout(60):
                await asyncio.sleep(60)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert num_waiting() == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert num_waiting() == 0

    asyncio.run(cancelled())


def test_nested_busy_bodies_are_counted_once_and_short_ones_not_at_all() -> None:
    def blocked_s() -> float:
        return time.monotonic() - free_seconds()

    before, start = blocked_s(), time.monotonic()
    with busy():
        with busy():
            time.sleep(0.02)
        time.sleep(0.01)
    assert 0.03 <= blocked_s() - before <= time.monotonic() - start + 1e-4
    before = blocked_s()
    with busy():
        pass
    assert blocked_s() == pytest.approx(before, abs=1e-4)


def test_who_is_not_urgent_is_waited_for_by_nobody() -> None:
    async def ask() -> None:
        async with free_timeout(5, urgent=False):
            assert num_waiting() == 0
            async with free_timeout(5):
                assert num_waiting() == 1
        assert num_waiting() == 0

    asyncio.run(ask())
