"""State + action -> new state + what the policy sees: the border between the trees and a world."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

from treegrpo_cli.types import Action, Message, StepResult, Task

State = TypeVar("State")


class Environment(Protocol[State]):
    """A world that is pure in its path: any inner node may be continued, so `step` leaves `state` as it was.

    `reset` and `step` may each be a plain or an `async` function; a plain one runs in a thread of its own, `async`
    ones in an event loop of theirs. An environment may also have

    - `check()`, plain or `async`, which raises `UserError` before the first rollout where it cannot work;
    - `close()`, called once at the end; a state may have one too, called once when its tree is done;
    - `state_key(state)`, plain or `async`, which returns a string, bytes or an integer, equal for states that are equal
      for whoever acts in them: `anchor` compares turns that were taken in one (by default those behind an equal
      observation). It is asked for each state that a turn goes on from;
    - `takes_cut_turns = True`: a turn that reached its token limit is no end, `step` gets it with `action.cut`.
    """

    tools: Sequence[dict[str, Any]]
    """JSON schemas of the tools, as chat templates take them (`tool_schema` makes them); empty = no tools."""

    def reset(self, task: Task) -> tuple[State, Sequence[Message]] | Awaitable[tuple[State, Sequence[Message]]]:
        """Return the state before the first turn, and the prompt's messages."""
        ...

    def step(self, state: State, action: Action) -> tuple[State, StepResult] | Awaitable[tuple[State, StepResult]]:
        """Return a new state and the observation.

        What it raises is shown to the policy, or closes the branch (`environment.tool_errors`). `ToolError`, a
        timeout or a lost connection always closes it, after `environment.tool_retries` more attempts.
        """
        ...
