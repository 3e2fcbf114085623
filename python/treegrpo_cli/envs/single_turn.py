"""Question -> one turn, which is the answer: a reward function judges it, and there are no tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treegrpo_cli.envs.instructions import with_instructions
from treegrpo_cli.types import Action, Message, StepResult, Task


class SingleTurnEnvironment:
    """The first turn ends the episode, whatever it says.

    Options: `instructions`, put before the question; none by default.
    """

    tools: Sequence[dict[str, Any]] = ()

    def __init__(self, instructions: str = "") -> None:
        self._instructions = instructions

    def reset(self, task: Task) -> tuple[None, Sequence[Message]]:
        """Return the row's messages, or its question."""
        messages = task.messages or ({"role": "user", "content": task.question},)
        return None, with_instructions(messages, self._instructions)

    def step(self, state: None, action: Action) -> tuple[None, StepResult]:
        """End."""
        return None, StepResult(done=True)
