"""Engines that outlive a run, and what is done to them while they sample."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.samplers.routing import RoutedSampler
from treegrpo_cli.scale.watch import Watch


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


def kill(replica: Any) -> None:
    os.kill(replica.facts.pid, signal.SIGKILL)


def hang(replica: Any) -> None:
    """Let its process live and do nothing; who watches over it loses patience soon."""
    os.kill(replica.facts.pid, signal.SIGSTOP)
    replica._watch.end()
    replica._watch = Watch(replica.actor, 1.0, replica._on_hang)


def kill_after(
    sampler: RoutedSampler, number: int, place: int, kill: Callable[[Any], None] = kill
) -> Callable[[], None]:
    """Kill the process of a live engine when so many turns were asked for; return what takes the trap away."""
    asked, sample = 0, sampler.sample

    async def counting(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == number:
            kill(sampler.live[place])
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


def lines_of(folder: Path) -> list[dict[str, Any]]:
    measured = ("step_time", "time/", "tokens_per_second/", "engine/", "memory/", "budget/step_seconds")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    return [
        {name: value for name, value in orjson.loads(line).items() if not name.startswith(measured)} for line in lines
    ]


def check_same_metrics(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, theirs in zip(found, expected, strict=True):
        numbers = {key: value for key, value in theirs.items() if not isinstance(value, str)}
        assert line == theirs | {key: pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in numbers.items()}
