"""`metrics.jsonl` -> a run's numbers as columns: what it measured at each line, against steps or against what it spent.

A line of the file is a row here: one of a step, or one of an evaluation, which stands behind its step. A value that is
null, which a run writes for one that is not finite, is NaN here, and a gap in a curve.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.errors import FileError, UserError, nearest
from treegrpo_cli.run.spending import Spent, each_line

Array = NDArray[np.float64]

AXES = {"step": "step", "tokens": "generated tokens", "tool-calls": "tool calls", "seconds": "seconds of the steps"}
"""What a metric may be drawn against."""


class Series(NamedTuple):
    """One metric of one run, float64 [points]; low and high are the interval that the run itself tells, or None."""

    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None


class History:
    """The numbers of a run, row by row; `last` has those of the last step, `{}` before the first."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self.last: Mapping[str, Any] = {}
        self.last_evaluation: Mapping[str, Any] = {}
        self.texts: set[str] = set()
        """Names of metrics that are no numbers."""
        self.spent = Spent()
        self._axes = {"step": array("d"), "tokens": array("d"), "tool-calls": array("d"), "seconds": array("d")}
        self._columns: dict[str, tuple[array[int], array[float]]] = {}
        for line in lines:
            self.add(line)

    @classmethod
    def read(cls, folder: Path) -> History:
        """Read a run's folder; empty where it has no metrics yet. Raises FileError for a file that is no run's."""
        if not folder.is_dir():
            raise FileError(
                folder, f"is no run: {'it is a file' if os.path.exists(folder) else 'there is no such folder'}"
            )
        return cls(each_line(folder / "metrics.jsonl"))

    def add(self, line: Mapping[str, Any]) -> None:
        """Take the next line of metrics."""
        row = len(self)
        self.spent += Spent.on(line)
        for axis, value in zip(self._axes.values(), (line["step"], *self.spent.all), strict=True):
            axis.append(value)
        self.texts.update(name for name, value in line.items() if isinstance(value, str))
        numbers = {name: value for name, value in line.items() if value is None or isinstance(value, int | float)}
        for name, value in numbers.items():
            if name == "step":
                continue
            rows, values = self._columns.setdefault(name, (array("q"), array("d")))
            rows.append(row)
            values.append(float("nan") if value is None else value)
        if "step_time" in line:
            self.last = numbers
        elif any(name.startswith("eval/") for name in line):
            self.last_evaluation = numbers

    def __len__(self) -> int:
        return len(self._axes["step"])

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def names(self) -> list[str]:
        """Metrics that are numbers, in the order in which they came."""
        return list(self._columns)

    @property
    def num_steps(self) -> int:
        """Lines of steps."""
        return len(self._columns["step_time"][0]) if "step_time" in self else 0

    @property
    def scores(self) -> list[str]:
        """Names of the evaluations' scores, without `eval/`."""
        return scores_among(self.names)

    def x(self, axis: str) -> Array:
        """What stands on an axis of `AXES` at each row."""
        return np.array(self._axes[axis], np.float64)

    def column(self, name: str) -> Array:
        """A metric at each row; NaN where it is not known."""
        column = np.full(len(self), np.nan)
        if name in self:
            rows, values = self._columns[name]
            column[np.array(rows)] = values
        return column

    def series(self, name: str, axis: str) -> Series | None:
        """A metric against an axis, with the interval that is told beside it; None where the run does not have it."""
        if name not in self:
            return None
        rows = np.array(self._columns[name][0])
        ends = [f"{name}_low", f"{name}_high"]
        low, high = (self.column(end)[rows] for end in ends) if all(end in self for end in ends) else (None, None)
        return Series(self.x(axis)[rows], self.column(name)[rows], low, high)

    def check_metric(self, name: str) -> None:
        """Raise UserError, with the nearest name, where a metric is not among the numbers."""
        if name in self.texts - set(self.names):
            raise UserError(f"--metric {name}: is text, and cannot be drawn")
        if name not in self:
            close = nearest(name, self.names)
            hint = close if close.startswith("did") else f"but {len(self.names)} others, such as {self.names[0]}"
            raise UserError(f"--metric {name!r:.100}: the runs have no such metric, {hint}")


def scores_among(names: Iterable[str]) -> list[str]:
    """Return which metrics are an evaluation's scores, without `eval/`.

    >>> scores_among(["reward", "eval/num_questions", "eval/f1", "eval/f1_low", "eval/f1_high"])
    ['f1']
    """
    found = [name for name in names if name.startswith("eval/") and name != "eval/num_questions"]
    bounds = {f"{name}_{end}" for name in found for end in ("low", "high")}
    return [name.removeprefix("eval/") for name in found if name not in bounds]
