"""Engines that outlive a run, and what is done to them while they sample."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from treegrpo_cli.config import Config
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.samplers.routing import RoutedSampler


class SharedEngines(Parts):
    """Parts whose engines stay open behind the run, for the next one."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def open_sampler(self, config: Config, log_path: Path | None, say: Any, trained: Any = None) -> Any:
        return _Kept(self.sampler)


class _Kept:
    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def close(self) -> None:
        """Nothing: the module's fixture closes it."""


def kill_after(sampler: RoutedSampler, number: int, place: int) -> Callable[[], None]:
    """Kill the process of a live engine when so many turns were asked for; return what takes the trap away."""
    asked, sample = 0, sampler.sample

    async def counting(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == number:
            os.kill(sampler.live[place].facts.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        return await sample(*arguments)

    sampler.sample = counting  # type: ignore[method-assign]

    def undo() -> None:
        assert asked >= number
        del sampler.sample  # type: ignore[attr-defined]

    return undo


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
