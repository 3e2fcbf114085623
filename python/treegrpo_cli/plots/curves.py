"""`metrics.jsonl` of a run -> its learning curve: the score at each evaluation against what was spent until then.

Between two evaluations the score is interpolated; before the first and behind the last it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.plots.history import scores_among
from treegrpo_cli.run.evaluation import REWARD
from treegrpo_cli.run.spending import Spent

AXES = {"tokens": "generated tokens", "tool_calls": "tool calls", "seconds": "seconds"}
"""What a score is drawn against, in the order of `Spent.all`."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """spent: float64 [evaluations, 3], in the order of `AXES` · score: float64 [evaluations]."""

    spent: NDArray[np.float64]
    score: NDArray[np.float64]

    def points(self, axis: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (spent, score) of the evaluations; the last of those that nothing was spent between."""
        spent = self.spent[:, list(AXES).index(axis)]
        last = np.append(np.diff(spent) > 0, True)
        return spent[last], self.score[last]

    def end(self, axis: str) -> float:
        """What was spent until the last evaluation."""
        return float(self.spent[-1, list(AXES).index(axis)])

    def at(self, axis: str, spent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores at some places of an axis."""
        scores: NDArray[np.float64] = np.interp(spent, *self.points(axis))
        return scores

    def spent_at(self, axis: str, spent: NDArray[np.float64], other: str) -> NDArray[np.float64]:
        """Return what was spent of another axis at some places of one."""
        column = self.spent[:, list(AXES).index(axis)]
        last = np.append(np.diff(column) > 0, True)
        found: NDArray[np.float64] = np.interp(spent, column[last], self.spent[last, list(AXES).index(other)])
        return found

    def area(self, axis: str, budget: float) -> float:
        """Return the mean score over the budget: the area under the curve over the budget."""
        spent, _ = self.points(axis)
        places = np.concatenate([[0.0], spent[(spent > 0) & (spent < budget)], [budget]])
        return float(np.trapezoid(self.at(axis, places), places) / budget)


def curve_of(metrics: Iterable[Mapping[str, Any]], name: str) -> Curve:
    """Return the curve of `eval/NAME` from the lines of `metrics.jsonl`. Raises ValueError where there is none."""
    total, points = Spent(), []
    for line in metrics:
        total += Spent.on(line)
        if line.get(f"eval/{name}") is not None:
            points.append((*total.all, line[f"eval/{name}"]))
    if not points:
        raise ValueError(f"expected evaluations with eval/{name}, got none")
    table = np.array(points, np.float64)
    return Curve(table[:, :3], table[:, 3])


def scores_of(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the scores that evaluations have, without `eval/`."""
    return scores_among(dict.fromkeys(name for line in metrics for name in line))


def choose_score(all_metrics: Sequence[tuple[Path, Sequence[Mapping[str, Any]]]], wanted: str | None) -> str:
    """Return the score that all runs have: the one wanted, else the reward, where there are several.

    Raises UserError, naming a run's folder, where one does not have it.
    """
    first = scores_of(all_metrics[0][1])
    name = wanted or (REWARD if REWARD in first or not first else first[0])
    for path, metrics in all_metrics:
        names = scores_of(metrics)
        if name not in names:
            raise UserError(f"{path}: has no score {name!r}, {nearest(name, names)}")
    return name
