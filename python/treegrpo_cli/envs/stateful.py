"""World that changes in place -> one that is pure in its path: forked, deep-copied, or replayed.

The state is a snapshot that nobody steps: every action goes to a copy of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.types import Action, Message, StepResult, Task
from treegrpo_cli.user_code import call


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The world behind the last of `history`; a reward function finds it as `rollout.state.world`."""

    world: Any
    task: Task
    history: tuple[tuple[Action, StepResult], ...] = field(default=())


class StatefulEnvironment:
    """Adapts a class of `reset(task) -> messages` and `step(action) -> StepResult`; either may be `async`.

    `fork_method` says how its worlds are copied: `fork` where the class has a `fork()` that returns a copy,
    else `deepcopy`, else `replay` (a new world takes the path's actions again, and must answer as it did).
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        world = make()
        self.tools: Sequence[dict[str, Any]] = getattr(world, "tools", ())
        self.fork_method = "fork" if callable(getattr(world, "fork", None)) else "deepcopy"
        self._check = getattr(world, "check", None)

    async def check(self) -> None:
        """Ask the world itself, where it has a `check()`."""
        if self._check is not None:
            await call(self._check)

    async def reset(self, task: Task) -> tuple[Snapshot, Sequence[Message]]:
        """Return a new world behind its reset, and the prompt's messages."""
        world = await call(self._make)
        messages = await call(world.reset, task)
        return Snapshot(world, task), messages

    async def step(self, state: Snapshot, action: Action) -> tuple[Snapshot, StepResult]:
        """Step a copy of the world; `state` stays as it was."""
        world = await self._copy(state)
        result = await call(world.step, action)
        if not isinstance(result, StepResult):
            raise UserError(f"environment: step must return a StepResult, got a {type(result).__name__}")
        return Snapshot(world, state.task, (*state.history, (action, result))), result

    async def _copy(self, state: Snapshot) -> Any:
        if self.fork_method == "fork":
            return await call(state.world.fork)
        if self.fork_method == "deepcopy":
            try:
                return await call(copy.deepcopy, state.world)
            except Exception:  # locks, sockets, generators: what cannot be copied says so in many ways
                self.fork_method = "replay"
        return await self._replay(state)

    async def _replay(self, state: Snapshot) -> Any:
        world = await call(self._make)
        await call(world.reset, state.task)
        for turn, (action, recorded) in enumerate(state.history, start=1):
            if await call(world.step, action) != recorded:
                raise ToolError(f"cannot continue this turn: replayed from the root, turn {turn} answered differently")
        return world
