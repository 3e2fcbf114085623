"""Turns asked for in one turn of the driver's event loop -> one call of an engine's actor; what has ended comes back.

A call of an actor costs the driver about half a millisecond, whatever is in it. Each carries what was asked for since
the last one, and returns when any turn has ended, with all that have ended by then. Every turn's end lets one waiting
call return: there are never more of them than turns.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from treegrpo_cli.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    from treegrpo_cli.samplers.base import Sampler


class RaisedThereError(Exception):
    """The cause of what an actor's turn raised: its text is the traceback in the actor's process."""


class Failed(NamedTuple):
    """What a turn raised, and where."""

    error: BaseException
    traceback: str


Ended: TypeAlias = "tuple[int, Completion | Failed]"
"""A turn's number, and how it ended."""


class Asked(NamedTuple):
    """A turn that is asked for."""

    number: int
    context: TokenIds
    params: SamplingParams
    seed: int


class TurnCalls:
    """The driver's end, in the event loop that runs now. `number` tells the loops of one driver apart."""

    def __init__(self, actor: Any, number: int) -> None:
        self._actor, self._number = actor, number
        self._loop = asyncio.get_running_loop()
        self._turn_numbers = count()
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._unsent: dict[int, Asked] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def are_for(self, actor: Any) -> bool:
        """Whether these are calls of this actor, in the loop that runs now."""
        return self._actor is actor and self._loop is asyncio.get_running_loop()

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """Sample one turn; who is cancelled drops it. Raises what sampling raised, or Ray's error of the call."""
        number = next(self._turn_numbers)
        future: asyncio.Future[Completion] = self._loop.create_future()
        self._waiting[number] = future
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent[number] = Asked(number, context, params, seed)
        try:
            return await future
        except asyncio.CancelledError:
            if number not in self._unsent:
                self._actor.drop.remote(self._number, number)
            raise
        finally:
            self._waiting.pop(number, None)
            self._unsent.pop(number, None)

    def _send(self) -> None:
        """Send what was asked for; where nothing was, ask for what ends."""
        asked, self._unsent = list(self._unsent.values()), {}
        if asked or (self._waiting and not self._calls):
            call = self._loop.create_task(self._call(asked))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            call.add_done_callback(self._go_on)

    async def _call(self, asked: Sequence[Asked]) -> None:
        try:
            answers: list[Ended] = await self._actor.sample.remote(self._number, asked)
        except Exception as error:  # it belongs to everybody who waits
            waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(error)
            return
        for number, answer in answers:
            answered = self._waiting.pop(number, None)
            if answered is not None and not answered.done():
                if isinstance(answer, Failed):
                    answer.error.__cause__ = RaisedThereError(answer.traceback)
                    answered.set_exception(answer.error)
                else:
                    answered.set_result(answer)

    def _go_on(self, call: asyncio.Task[None]) -> None:
        if not call.cancelled() and not self._unsent:
            self._send()


class TurnAnswers:
    """The actor's end: turns of one loop of the driver that are sampled, and those that have ended since a call."""

    def __init__(self) -> None:
        self._turns: dict[int, asyncio.Task[Completion]] = {}
        self._ended: list[Ended] = []
        self._calls: deque[asyncio.Future[None]] = deque()
        self._dropped: set[int] = set()
        """Turns that were dropped, and are not here: they have ended, or the call that asks for them was overtaken."""

    @property
    def are_settled(self) -> bool:
        """Whether all turns that were dropped have ended."""
        return not any(turn.cancelling() for turn in self._turns.values())

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be known of any turn."""
        return not (self._turns or self._ended or self._dropped)

    async def sample(self, sampler: Sampler, asked: Sequence[Asked]) -> list[Ended]:
        """Begin the turns that are asked for, and return what has ended as soon as anything has."""
        for number, context, params, seed in asked:
            if number in self._dropped:
                self._dropped.remove(number)
                continue
            turn = self._turns[number] = asyncio.ensure_future(sampler.sample(context, params, seed))
            turn.add_done_callback(partial(self._end, number))
        if self._turns and not self._ended:
            call = asyncio.get_running_loop().create_future()
            self._calls.append(call)
            await call
        ended, self._ended = self._ended, []
        return ended

    def drop(self, number: int) -> None:
        """Forget a turn; it may have ended, or not have come yet."""
        if turn := self._turns.get(number):
            turn.cancel()
        else:
            self._dropped.add(number)

    def _end(self, number: int, turn: asyncio.Task[Completion]) -> None:
        del self._turns[number]
        if not turn.cancelled():
            error = turn.exception()
            ended = Failed(error, "".join(traceback.format_exception(error))) if error else turn.result()
            self._ended.append((number, ended))
        for _ in range(min(len(self._calls), 1 if self._turns else len(self._calls))):
            self._calls.popleft().set_result(None)
