"""State + action -> new state + what the policy sees: the border between the trees and a world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from treegrpo_cli.types import Action, Message, StepResult, Task

State = TypeVar("State")


class Environment(Protocol[State]):
    """A world that is pure in its path: any inner node may be continued, so `step` leaves `state` as it was."""

    tools: Sequence[dict[str, Any]]
    """JSON schemas of the tools, for the chat template; empty where there are none."""

    def reset(self, task: Task) -> tuple[State, Sequence[Message]]:
        """Return the state before the first turn, and the prompt's messages."""
        ...

    async def step(self, state: State, action: Action) -> tuple[State, StepResult]:
        """Return a new state and the observation; raises where a tool failed for good."""
        ...
