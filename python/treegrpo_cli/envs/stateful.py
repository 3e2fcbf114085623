"""World that changes in place -> one that is pure in its path: forked, deep-copied, or replayed.

The state is a snapshot that nobody steps: every action goes to a copy of it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from treegrpo_cli.envs.answers import checked_messages, checked_result
from treegrpo_cli.errors import ToolError, UserCodeError
from treegrpo_cli.types import Action, Message, StepResult, Task
from treegrpo_cli.user_code import call, looking_at_answers, run_apart

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The world behind the last of `history`; a reward function finds it as `rollout.state.world`."""

    world: Any
    task: Task
    history: tuple[tuple[Action, StepResult], ...] = field(default=())

    async def close(self) -> None:
        """Close the world, where it can be closed."""
        if callable(getattr(self.world, "close", None)):
            await call(self.world.close)


class StatefulEnvironment:
    """Adapts a class of `reset(task) -> messages` and `step(action) -> StepResult`; either may be `async`.

    `fork_method` says how its worlds are copied: `fork` where the class has a `fork()` that returns a copy,
    else `deepcopy`, else `replay` (a new world takes the path's actions again, and must answer as it did).
    Where the class has a `state_key()`, it says which state a world is in (see `Environment`).
    Every world that was made or copied is closed once, where the class has a `close()`.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._first = make()
        self.tools: Sequence[dict[str, Any]] = getattr(self._first, "tools", ())
        self.takes_cut_turns = bool(getattr(self._first, "takes_cut_turns", False))
        self.fork_method = "fork" if callable(getattr(self._first, "fork", None)) else "deepcopy"

        if callable(getattr(self._first, "state_key", None)):
            self.state_key = self._state_key

    async def _state_key(self, state: Snapshot) -> Any:
        """Ask the world itself, whose `state_key()` takes nothing."""
        return await call(state.world.state_key)

    async def check(self) -> None:
        """Ask the world itself, where it has a `check()`."""
        if callable(getattr(self._first, "check", None)):
            await call(self._first.check)

    async def close(self) -> None:
        """Close the world that was made to ask for its tools."""
        if callable(getattr(self._first, "close", None)):
            await call(self._first.close)

    async def reset(self, task: Task) -> tuple[Snapshot, Sequence[Message]]:
        """Return a new world behind its reset, and the prompt's messages."""
        world = await call(self._make)
        async with _closed_on_failure(world):
            messages = await call(world.reset, task)
            with looking_at_answers():
                return Snapshot(world, task), checked_messages(messages, "reset")

    async def step(self, state: Snapshot, action: Action) -> tuple[Snapshot, StepResult]:
        """Step a copy of the world; `state` stays as it was."""
        world = await self._copy(state)
        async with _closed_on_failure(world):
            result = await _step(world, action)
            return Snapshot(world, state.task, (*state.history, (action, result))), result

    async def _copy(self, state: Snapshot) -> Any:
        if self.fork_method == "fork":
            return _other(await call(state.world.fork), state.world, "fork()")
        if self.fork_method == "deepcopy":
            try:
                return _other(await call(copy.deepcopy, state.world), state.world, "its deep copy")
            except UserCodeError as error:  # locks, sockets, generators: what cannot be copied says so in many ways
                self._replay_from_now_on(state.world, error)
        return await self._replay(state)

    def _replay_from_now_on(self, world: Any, error: UserCodeError) -> None:
        if self.fork_method != "replay":
            self.fork_method = "replay"
            name = type(world).__name__
            logger.warning(
                "environment: a %s cannot be copied (%s), so each step first repeats all earlier steps of its path, "
                "which must answer as they did before; a method fork() that returns a copy avoids this",
                name,
                error.reason,
            )

    async def _replay(self, state: Snapshot) -> Any:
        world = await call(self._make)
        async with _closed_on_failure(world):
            await call(world.reset, state.task)
            for turn, (action, recorded) in enumerate(state.history, start=1):
                if await _step(world, action) != recorded:
                    reason = f"replayed from the root, turn {turn} answered differently"
                    raise ToolError(f"cannot continue this turn: {reason}")
            return world


async def _step(world: Any, action: Action) -> StepResult:
    result = await call(world.step, action)
    if not isinstance(result, StepResult):
        raise ToolError(f"environment: step must return a StepResult, got a {type(result).__name__}")
    with looking_at_answers():
        return checked_result(result)


def _other(copied: Any, world: Any, what: str) -> Any:
    """Return the copy of a world. Raises ToolError where it is none: two branches would step one world."""
    with looking_at_answers():
        if copied is world or not callable(getattr(copied, "step", None)):
            got = "the world itself" if copied is world else f"a {type(copied).__name__}"
            raise ToolError(f"environment: {what} must be a copy of a {type(world).__name__}, got {got}")
    return copied


@asynccontextmanager
async def _closed_on_failure(world: Any) -> AsyncIterator[None]:
    """Close a world that becomes no state: nobody else knows it. What closing it does is waited for by nobody."""
    try:
        yield
    except BaseException:
        if callable(getattr(world, "close", None)):
            run_apart(world.close)
        raise
