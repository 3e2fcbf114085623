"""A world in other processes, behind the protocol of any world: its states are handles of those that live there.

A handle knows how its state came about. Where a worker ends, the states of its trees are made again elsewhere, when
they are asked for: from the root, turn by turn, and each turn must answer as it did. What ran in a worker that died is
not tried again, since it may be what killed it: a step closes its branch, a reward leaves its leaves unscored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs.outside import is_outside
from treegrpo_cli.errors import LastToolError, UserCodeError
from treegrpo_cli.types import Action, Message, StepResult, Task
from treegrpo_cli.workers.plain import NotPlainError
from treegrpo_cli.workers.pool import Pool
from treegrpo_cli.workers.worker import DiedError, EvictedError, Worker

Value = TypeVar("Value")


@dataclass(eq=False, slots=True)
class Planted:
    """A tree as its worker knows it."""

    task: Task
    worker: Worker
    pool: Pool
    states: list[State] = field(default_factory=list)
    num_open: int = 0
    """States that nobody has closed yet."""
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def close(self) -> None:
        """Close all states, side by side, and give up the tree's place."""
        self.worker.num_trees -= 1
        numbers = [state.number for state in self.states if state.worker is self.worker]
        try:
            await self.worker.ask(self.pool.number(), "close_states", states=numbers)
        except (DiedError, EvictedError):  # closed more thoroughly than asked
            return


@dataclass(eq=False, slots=True)
class State:
    """The handle of a state: which request made it, where, and what would make it again."""

    tree: Planted
    worker: Worker
    number: int
    parent: State | None
    action: Action | None
    answer: Any
    """What `reset` or `step` gave beside it."""
    is_closed: bool = False

    async def close(self) -> None:
        """Close the state, with the last of its tree."""
        if not self.is_closed:
            self.is_closed = True
            self.tree.num_open -= 1
            if not self.tree.num_open:
                await self.tree.close()


class WorkerEnvironment:
    """A world in the workers of `pool`."""

    def __init__(self, pool: Pool, config: EnvironmentConfig) -> None:
        self.pool, self._config = pool, config
        self.tools: Sequence[dict[str, Any]] = pool.facts["tools"]
        self.takes_cut_turns = bool(pool.facts["takes_cut_turns"])
        if pool.facts["has_state_key"]:
            self.state_key = self._state_key

    async def check(self) -> None:
        """Ask each world, where it has a `check()`."""
        if self.pool.facts["has_check"]:
            await self.pool.ask_all("check")

    async def close(self) -> None:
        """Close all worlds and end their processes."""
        await self.pool.close()

    async def reset(self, task: Task) -> tuple[State, Sequence[Message]]:
        """Return the state before the first turn, in the worker that has the fewest trees, and the messages."""
        tree = Planted(task, self.pool.home(), self.pool)
        tree.worker.num_trees += 1
        self.pool.num_trees += 1
        try:
            root = await self._make(tree, None, None)
        except BaseException:
            tree.worker.num_trees -= 1
            raise
        return root, root.answer

    async def step(self, state: State, action: Action) -> tuple[State, StepResult]:
        """Return the state behind the action, in the same worker, and the observation."""
        after = await self._make(state.tree, state, action)
        return after, after.answer

    async def _state_key(self, state: State) -> Any:
        """Ask the state's world."""
        return await self.ask(state.tree, [state], "key", lambda: {"state": state.number})

    async def ask(self, tree: Planted, states: Sequence[State], do: str, given: Callable[[], dict[str, Any]]) -> Any:
        """Return what the tree's worker answers; `given` is asked for the arguments once `states` are there.

        Raises LastToolError where the worker dies of it, or what is sent is no plain data; FailedRunError where too
        many have died.
        """
        return (await self._ask(tree, states, do, given))[1]

    async def settle(self, state: State) -> None:
        """Have a state in a worker that lives. Raises as `ask` does."""
        await self._guarded(state.tree, [state], _nothing)

    async def _make(self, tree: Planted, parent: State | None, action: Action | None) -> State:
        if parent is None:
            number, answer = await self._ask(tree, [], "reset", lambda: {"task": tree.task})
        else:
            number, answer = await self._ask(tree, [parent], "step", lambda: _step(parent, action))
        state = State(tree, tree.worker, number, parent, action, answer)
        tree.states.append(state)
        tree.num_open += 1
        return state

    async def _ask(
        self, tree: Planted, states: Sequence[State], do: str, given: Callable[[], dict[str, Any]]
    ) -> tuple[int, Any]:
        async def asked() -> tuple[int, Any]:
            number = self.pool.number()
            return number, await tree.worker.ask(number, do, **given())

        return await self._guarded(tree, states, asked)

    async def _guarded(self, tree: Planted, states: Sequence[State], asked: Callable[[], Awaitable[Value]]) -> Value:
        while True:
            self.pool.check()
            try:
                await self._settle(tree, states)
                return await asked()
            except EvictedError:  # not by its own fault
                continue
            except DiedError as error:
                raise LastToolError(f"environment: its worker ended while this ran in it ({error})") from error
            except NotPlainError as error:
                raise LastToolError(f"environment.workers: a worker takes plain data alone, got {error}") from error

    async def _settle(self, tree: Planted, states: Sequence[State]) -> None:
        """Have these states in a worker that lives, the tree's."""
        if not tree.worker.is_gone and all(state.worker is tree.worker for state in states):
            return
        async with tree.moving:
            if tree.worker.is_gone:
                tree.worker = self.pool.home()
                tree.worker.num_trees += 1
            for state in states:
                await self._make_again(state)

    async def _make_again(self, state: State) -> None:
        path: list[State] = []
        lost: State | None = state
        while lost is not None and lost.worker is not state.tree.worker:
            path.append(lost)
            lost = lost.parent
        for lost in reversed(path):
            await self._repeat(lost)

    async def _repeat(self, lost: State) -> None:
        worker, number = lost.tree.worker, self.pool.number()
        try:
            if lost.parent is None:
                answer = await worker.ask(number, "reset", task=lost.tree.task)
            else:
                answer = await worker.ask(number, "step", **_step(lost.parent, lost.action))
        except UserCodeError as error:
            if is_outside(error):
                raise
            raise LastToolError(f"{LOST}, a turn raised {error.reason}", error.trace) from error
        if answer != lost.answer:
            raise LastToolError(f"{LOST}, a turn answered differently")
        lost.worker, lost.number = worker, number


LOST = "cannot continue this turn: its worker ended, and played again from the root"


async def _nothing() -> None:
    """Ask for nothing more."""


def _step(state: State, action: Action | None) -> dict[str, Any]:
    return {"state": state.number, "action": action}
