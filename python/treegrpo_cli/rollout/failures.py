"""What did not work in a rollout, as data: counted and named by whoever reads the groups, never raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["prompt", "reset", "tool", "reward"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that failed.

    `prompt`: it is too long, has no tokens, or cannot be written in the dialect. `reset`: the environment did
    not start, after its retries. Either leaves the prompt without trees. `tool`: a branch was closed.
    `reward`: a kept leaf has no reward; one failure a leaf. `reason` is one line, `trace` the
    lines of the traceback of people's own code.
    """

    kind: Kind
    prompt_id: str
    reason: str
    tree_id: int | None = None
    trace: tuple[str, ...] = ()


class PromptError(Exception):
    """A prompt that no tree can grow from: how `plant` tells `collect`, which makes it a `Failure`."""

    def __init__(self, kind: Kind, reason: str, tree_id: int, trace: tuple[str, ...] = ()) -> None:
        self.kind: Kind = kind
        self.reason, self.tree_id, self.trace = reason, tree_id, trace
        super().__init__(reason)
