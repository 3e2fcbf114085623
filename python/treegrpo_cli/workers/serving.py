"""Requests of the driver -> answers of the world and the rewards that live in this process, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from treegrpo_cli.config import RewardConfig
from treegrpo_cli.envs import Environment, close_environment, close_states
from treegrpo_cli.envs.answers import state_and_messages, state_and_result
from treegrpo_cli.errors import LastToolError, ToolError, UserError
from treegrpo_cli.rewards import load_rewards
from treegrpo_cli.rewards.base import Rewards
from treegrpo_cli.types import Rollout, Task
from treegrpo_cli.user_code import call, looking_at_answers
from treegrpo_cli.user_code.threads import begun
from treegrpo_cli.workers.plain import NotPlainError
from treegrpo_cli.workers.raised import as_data

DRIVERS_LIMIT = 1e7
"""Seconds: the driver counts them."""


class Server:
    """A world, its states by the number of the request that made them, and the requests that run."""

    def __init__(self, environment: Environment[Any], send: Callable[[dict[str, Any]], None]) -> None:
        self._environment, self._send = environment, send
        self._states: dict[int, tuple[Any, Task]] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._rewards: dict[int, Rewards | UserError] = {}
        self._closings: set[asyncio.Task[None]] = set()
        self.closing: asyncio.Task[None] | None = None
        """The end of the world, once it was asked for."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the driver must know of the world."""
        environment = self._environment
        return {
            "tools": list(environment.tools),
            "takes_cut_turns": bool(getattr(environment, "takes_cut_turns", False)),
            "has_state_key": callable(getattr(environment, "state_key", None)),
            "has_check": getattr(environment, "check", None) is not None,
        }

    def take(self, message: dict[str, Any]) -> None:
        """Begin what a message asks for."""
        if "cancel" in message:
            self._cancel(message["cancel"])
        elif "rewards" in message:
            self._load_rewards(message["rewards"], message["config"])
        else:
            number, do = message.pop("id"), message.pop("do")
            self._running[number] = task = asyncio.create_task(self._answer(number, do, message))
            if do == "close":
                self.closing = task

    async def _answer(self, number: int, do: str, given: dict[str, Any]) -> None:
        begun.set(threads := set[Future[Any]]())
        answer: dict[str, Any]
        try:
            answer = {"id": number, "answer": await self._do(number, do, given)}
        except BaseException as error:
            answer = {"id": number, "raised": as_data(error)}
        is_cancelled = bool(_this_task().cancelling())
        self._running.pop(number)
        left = [asyncio.wrap_future(thread) for thread in threads if not thread.done()]
        if is_cancelled:
            await self._close([number])
        else:
            self._reply(number, answer, bool(left))
        if left:
            await asyncio.gather(*left, return_exceptions=True)
        if left or is_cancelled:
            self._send({"ended": number})

    def _reply(self, number: int, answer: dict[str, Any], is_left: bool) -> None:
        try:
            self._send({**answer, "is_left": is_left})
        except NotPlainError as error:
            raised = LastToolError(f"environment.workers: its answer must be plain data, got {error}")
            self._send({"id": number, "raised": as_data(raised), "is_left": is_left})

    def _cancel(self, number: int) -> None:
        """Nobody waits for this request: end it where it runs, else close what it made."""
        if number in self._running:
            self._running[number].cancel()
        else:
            closing = asyncio.create_task(self._close([number]))
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)
            closing.add_done_callback(lambda _: self._send({"ended": number}))

    def _load_rewards(self, number: int, config: dict[str, Any]) -> None:
        try:
            self._rewards[number] = load_rewards(RewardConfig(**config))
        except UserError as error:
            self._rewards[number] = error

    async def _do(self, number: int, do: str, given: dict[str, Any]) -> Any:
        work: dict[str, Callable[..., Awaitable[Any]]] = {
            "check": self._check,
            "reset": self._reset,
            "step": self._step,
            "key": self._key,
            "reward": self._reward,
            "close_states": self._close_states,
            "close": self._close_world,
        }
        return await work[do](number, **given)

    async def _check(self, _: int) -> None:
        await call(self._environment.check)  # type: ignore[attr-defined]  # asked for only where there is one

    async def _reset(self, number: int, task: Task) -> list[dict[str, Any]]:
        answer = await call(self._environment.reset, task)
        with _looking_for_good():
            state, messages = state_and_messages(answer)
        self._states[number] = state, task
        return messages

    async def _step(self, number: int, state: int, action: Any) -> Any:
        before, task = self._states[state]
        answer = await call(self._environment.step, before, action)
        with _looking_for_good():
            after, result = state_and_result(answer)
        self._states[number] = after, task
        return result

    async def _key(self, _: int, state: int) -> Any:
        key = await call(self._environment.state_key, self._states[state][0])  # type: ignore[attr-defined]
        if type(key) not in (str, bytes, int):
            got = type(key).__name__
            raise LastToolError(f"environment: state_key must return a str, bytes or an int, got a {got}")
        return key

    async def _reward(self, _: int, functions: int, rollouts: list[Rollout]) -> Any:
        rewards = self._rewards[functions]
        if isinstance(rewards, UserError):
            raise rewards
        at_home = [self._states[rollout.state] for rollout in rollouts]
        return await rewards.reward(
            [replace(rollout, state=state, task=task) for rollout, (state, task) in zip(rollouts, at_home, strict=True)]
        )

    async def _close_states(self, _: int, states: list[int]) -> None:
        await self._close(states)

    async def _close(self, numbers: list[int]) -> None:
        gone = [self._states.pop(number)[0] for number in numbers if number in self._states]
        await close_states(gone, DRIVERS_LIMIT)

    async def _close_world(self, _: int) -> None:
        await asyncio.gather(*self._closings)
        await close_environment(self._environment, DRIVERS_LIMIT)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # asked in a coroutine
    return task


@contextmanager
def _looking_for_good() -> Iterator[None]:
    """`looking_at_answers`, where what is wrong with an answer will be so the next time."""
    try:
        with looking_at_answers():
            yield
    except ToolError as wrong:
        raise LastToolError(str(wrong), wrong.trace) from wrong
