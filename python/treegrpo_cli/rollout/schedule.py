"""When a chain takes its next turn: at once, or in step with all others.

`free`: a turn starts when its own tool has answered, a round of expansions when its own tree's chains have
ended. `lock-step`, as published: all chains sample, then all act, then all sample again, and a round starts
when the chains of every tree have ended. Trees depend on keys alone, so both grow the same ones; they differ
in how long that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal


class Barrier:
    """Holds its members until every one of them waits, or has left."""

    def __init__(self) -> None:
        self._num_members = 0
        self._waiting: list[asyncio.Future[None]] = []

    @contextmanager
    def member(self) -> Iterator[None]:
        """The body is one of those that the others wait for."""
        self._num_members += 1
        try:
            yield
        finally:
            self._num_members -= 1
            if self._waiting:
                self._check_soon()

    async def wait(self) -> None:
        """Wait for all other members; called inside `member`."""
        arrived = asyncio.get_running_loop().create_future()
        self._waiting.append(arrived)
        self._check_soon()
        await arrived

    def _check_soon(self) -> None:
        """Not at once: whoever was woken in this turn of the loop has yet to become a member."""
        asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        self._waiting = [future for future in self._waiting if not future.done()]  # without the cancelled
        if len(self._waiting) >= self._num_members:
            for future in self._waiting:
                future.set_result(None)
            self._waiting = []


class Free:
    """Nobody waits for anybody."""

    @contextmanager
    def tree(self) -> Iterator[None]:
        """The body is a tree that grows."""
        yield

    @contextmanager
    def chain(self) -> Iterator[None]:
        """The body is a chain that takes turns."""
        yield

    async def round(self) -> None:
        """A tree is ready for its first chain, or for its next expansions."""

    async def turn(self) -> None:
        """A chain is ready to sample, or to act on what it sampled."""


class LockStep(Free):
    """All trees wait for each other before a round, all chains before they sample and before they act."""

    def __init__(self) -> None:
        self._rounds, self._turns = Barrier(), Barrier()

    @contextmanager
    def tree(self) -> Iterator[None]:
        """The body is a tree that grows."""
        with self._rounds.member():
            yield

    @contextmanager
    def chain(self) -> Iterator[None]:
        """The body is a chain that takes turns."""
        with self._turns.member():
            yield

    async def round(self) -> None:
        """Wait until all trees are ready for the next round."""
        await self._rounds.wait()

    async def turn(self) -> None:
        """Wait until all chains have sampled, or have acted."""
        await self._turns.wait()


def make_schedule(name: Literal["free", "lock-step"]) -> Free:
    """Return the schedule of this name."""
    return LockStep() if name == "lock-step" else Free()


async def side_by_side(work: Iterable[Coroutine[Any, Any, None]], what: str) -> None:
    """Run coroutines until all have ended; the first error of one ends the others and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as several:
        raise first_of(several) from several
    if any(task.cancelled() for task in tasks):  # a task group takes that for an end like any other
        raise RuntimeError(f"{what} was cancelled by what it ran")


def first_of(error: BaseException) -> BaseException:
    """The first error of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
