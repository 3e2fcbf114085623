"""Where the seconds of a rollout went: the engine's, the tools', the rewards'."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Of everything that a player did since they were last taken; seconds of wall time.

    `engine_s` over the wall time of the rollout is the engine's busy share.
    """

    engine_s: float = 0.0
    """In which the engine decoded."""
    num_engine_steps: int = 0
    generated_tokens: int = 0
    """Tokens of finished turns."""
    tool_s: float = 0.0
    """Summed over the calls of the environment, retries and their pauses included."""
    tool_wait_s: float = 0.0
    """In which at least one such call was out."""
    num_tool_calls: int = 0
    """Calls of the environment's `step`."""
    reward_s: float = 0.0
    """Summed over the calls of the reward functions, one a tree."""
    selection_s: float = 0.0
    """In which nodes to expand were chosen, rewards aside."""


class Stopwatch:
    """Adds up what goes on side by side."""

    def __init__(self) -> None:
        self._since = 0.0
        self._num_running = 0
        self.reset()

    def reset(self) -> None:
        """Start from nothing; what runs now counts from now on, in `any_s` alone."""
        self.sum_s = self.any_s = 0.0
        self.count = 0
        self._since = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the body."""
        start = time.monotonic()
        if not self._num_running:
            self._since = start
        self._num_running += 1
        try:
            yield
        finally:
            end = time.monotonic()
            self._num_running -= 1
            self.sum_s += end - start
            self.count += 1
            if not self._num_running:
                self.any_s += end - self._since
