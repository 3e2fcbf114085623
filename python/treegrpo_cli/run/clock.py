"""Pieces of a step -> the seconds that they took, and what the machine did meanwhile, as metrics."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treegrpo_cli.rollout.timings import Timings

GIB = 2**30


class Clock:
    """Adds up the seconds of each piece of a step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._start = time.monotonic()

    def start(self) -> None:
        """Begin a step."""
        self._seconds, self._start = {}, time.monotonic()

    @contextmanager
    def of(self, piece: str) -> Iterator[None]:
        """Count the body as this piece."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[piece] = self._seconds.get(piece, 0.0) + time.monotonic() - start

    def metrics(self) -> dict[str, float]:
        """`time/PIECE` of this step so far, and `step_time`, all of it."""
        pieces = {f"time/{piece}": seconds for piece, seconds in self._seconds.items()}
        return pieces | {"step_time": time.monotonic() - self._start}


def rollout_metrics(timings: Timings, rollout_s: float) -> dict[str, float]:
    """What engine, tools and rewards took of a rollout of `rollout_s` seconds."""
    wall_s = max(rollout_s, 1e-9)
    return {
        "time/tools_waited": timings.tool_wait_s,
        "time/tools_busy": timings.tool_s,
        "time/rewards": timings.reward_s,
        "time/engine": timings.engine_s,
        "time/selection": timings.selection_s,
        "engine/busy_share": timings.engine_s / wall_s,
        "tokens_per_second/generated": timings.generated_tokens / wall_s,
    }


def peak_memory() -> dict[str, float]:
    """Peak memory so far, in GiB: of this process, and of tensors on the GPU since the last call."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    if torch.cuda.is_available():
        peak["memory/peak_gpu_gib"] = torch.cuda.max_memory_allocated() / GIB
        torch.cuda.reset_peak_memory_stats()
    return peak
