"""`metrics.jsonl` -> what a run has spent so far: generated tokens, tool calls, seconds.

A resumed run counts from the lines that it kept, so that it ends and evaluates where one that nothing interrupted does.
Tokens and tool calls of prompts that were thrown away count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from treegrpo_cli.config import BudgetConfig
from treegrpo_cli.errors import FileError, said

COUNTED = ("tree/generated_tokens", "tree/num_tool_calls", "step_time")
"""Metrics that are added up."""
MAX_COUNTED = 1e18


@dataclass(frozen=True, slots=True)
class Spent:
    """What one step or several took; `seconds` are those of the steps alone."""

    tokens: int = 0
    tool_calls: int = 0
    seconds: float = 0.0

    @classmethod
    def on(cls, metrics: Mapping[str, Any]) -> Self:
        """What the step of a line of metrics took; nothing where the line is no step's."""
        tokens, calls = metrics.get("tree/generated_tokens") or 0, metrics.get("tree/num_tool_calls") or 0
        return cls(int(tokens), int(calls), float(metrics.get("step_time") or 0.0))

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.tokens + other.tokens, self.tool_calls + other.tool_calls, self.seconds + other.seconds)

    def reaches(self, budget: BudgetConfig) -> bool:
        """Whether one of the budget's limits is reached."""
        limits = (budget.run_tokens, budget.run_tool_calls, budget.run_seconds)
        return any(0 < limit <= spent for limit, spent in zip(limits, self.all, strict=True))

    @property
    def all(self) -> tuple[float, float, float]:
        """Tokens, tool calls, seconds."""
        return self.tokens, self.tool_calls, self.seconds


class Spending:
    """What a run has spent, step by step."""

    def __init__(self, steps: Iterable[Mapping[str, Any]] = ()) -> None:
        self.before_last = self.total = Spent()
        for metrics in steps:
            self.add(metrics)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Count the next step by its metrics."""
        self.before_last, self.total = self.total, self.total + Spent.on(metrics)

    def passes(self, num_tokens: int) -> bool:
        """Whether the last step passed a multiple of so many generated tokens."""
        return self.total.tokens // num_tokens > self.before_last.tokens // num_tokens


def read_spending(path: Path) -> Spending:
    """Return what the steps of `metrics.jsonl` took; nothing where there is no such file."""
    return Spending(metrics for metrics in read_metrics(path) if "step_time" in metrics)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`, as `each_line` yields them."""
    return list(each_line(path))


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl`, without a last one that a kill left unfinished; none where it is not there.

    Raises FileError, naming the line, for one that is no line of metrics.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield parse_line(path, number, line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(path, said(error)) from None


def parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Return what a line of `metrics.jsonl` holds. Raises FileError where it is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise FileError(path, f"not JSON: {said(error)}", number) from None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise FileError(path, "no line of metrics: it has no step", number)
    for name in COUNTED:
        value = record.get(name)
        if value is not None and not (isinstance(value, int | float) and abs(value) <= MAX_COUNTED):
            raise FileError(path, f"{name}: {value!r:.40} is no number that can be added up", number)
    return record
