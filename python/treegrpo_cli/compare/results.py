"""Curves of arms and seeds -> all numbers of a comparison, as they stand in `results.json`.

Arms are compared over the part of the budget that all runs have: where a run ended before it, at `train.num_steps` say,
no arm counts beyond that. What else was spent until a score is reached, tool calls say, is what an arm has spent on it
at that point of the budget, the mean over its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treegrpo_cli.plots.curves import AXES, Curve
from treegrpo_cli.plots.statistics import (
    Array,
    Estimate,
    Sheaf,
    draw_again,
    improvement,
    mean_of,
    meaning,
)

GRID_SIZE = 201
SHARES = (0.5, 0.75, 0.9)
"""Of the gain of the best arm: the scores that are waited for where none are given."""

Curves = Mapping[str, Mapping[int, Curve]]
"""Arm -> seed -> curve; the first arm is what the others are compared with."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared: a score against one axis, up to a budget of it (0: as far as all runs go)."""

    score: str
    axis: str
    budget: float
    targets: Sequence[float] = ()


def compare(curves: Curves, question: Question) -> dict[str, Any]:
    """Compute the numbers. Raises ValueError where an arm has no curve, or nothing was spent.

    JSON of its own: an estimate is {"value", "low", "high"}; null stands for an interval of one seed, and for a score
    that is not reached.
    """
    main = question.axis
    end = min(_end(runs, main) for runs in curves.values())
    end = min(question.budget or end, end)
    if not end:
        raise ValueError(f"expected runs that spend {AXES[main]}, got none")
    sheaves = {arm: _sheaf(runs, main, end, arm) for arm, runs in curves.items()}
    targets = list(question.targets) or _targets(sheaves)
    first = next(iter(curves))
    arms = []
    for arm, runs in curves.items():
        values = _values(runs, main, end)
        axes = {axis: own for axis in AXES if (own := end if axis == main else _end(runs, axis))}
        arms.append(
            {
                "name": arm,
                "seeds": sorted(runs),
                "statistic": meaning(len(runs)),
                **{
                    name: _with_seeds(mean_of(value, draw_again(len(runs), arm)), value)
                    for name, value in values.items()
                },
                "against_first": None if arm == first else _against(curves, arm, first, main, end),
                "reached": {axis: _reached(curves, sheaves, arm, first, targets, main, axis) for axis in axes},
                "curves": {axis: _curve_json(_sheaf(runs, axis, own, arm)) for axis, own in axes.items()},
                "runs": {str(seed): _points(curve) for seed, curve in sorted(runs.items())},
            }
        )
    return {
        "score": question.score,
        "axis": main,
        "budget": question.budget or None,
        "compared_up_to": end,
        "targets": targets,
        "arms": arms,
    }


def _end(runs: Mapping[int, Curve], axis: str) -> float:
    return min(curve.end(axis) for curve in runs.values())


def _sheaf(runs: Mapping[int, Curve], axis: str, end: float, arm: str) -> Sheaf:
    grid = np.linspace(0, end, GRID_SIZE)
    return Sheaf(grid, np.array([runs[seed].at(axis, grid) for seed in sorted(runs)]), draw_again(len(runs), arm))


def _targets(sheaves: Mapping[str, Sheaf]) -> list[float]:
    """Shares of the way from where the arms begin to the best arm's last score, and the first arm's last score."""
    first = next(iter(sheaves.values()))
    begin = float(np.mean([sheaf.mean[0] for sheaf in sheaves.values()]))
    best = max(float(sheaf.mean[-1]) for sheaf in sheaves.values())
    shares = [begin + share * (best - begin) for share in SHARES]
    return sorted({round(target, 4) for target in (*shares, math.floor(first.mean[-1] * 1e4) / 1e4)})


def _values(runs: Mapping[int, Curve], axis: str, end: float) -> dict[str, Array]:
    """One value a seed, in the order of the seeds: the score at the end, and the mean score on the way."""
    curves = [curve for _, curve in sorted(runs.items())]
    final = np.array([curve.at(axis, np.array([end]))[0] for curve in curves])
    return {"final": final, "area": np.array([curve.area(axis, end) for curve in curves])}


def _against(curves: Curves, arm: str, first: str, axis: str, end: float) -> dict[str, Any]:
    """Differences to the first arm on the seeds that both have, and the probability to be above it."""
    both = sorted(curves[arm].keys() & curves[first].keys())
    found: dict[str, Any] = {"seeds": both}
    mine, theirs = (_values(curves[name], axis, end) for name in (arm, first))
    for name in mine:
        draws = [draw_again(len(curves[one]), one) for one in (arm, first)]
        better = improvement(mine[name], draws[0], theirs[name], draws[1])
        found[name] = {"difference": None, "probability_of_improvement": _json(better)}
        if both:
            mine_of, theirs_of = (
                _values({seed: curves[one][seed] for seed in both}, axis, end)[name] for one in (arm, first)
            )
            apart = mine_of - theirs_of
            found[name]["difference"] = _with_seeds(mean_of(apart, draw_again(len(both), f"{arm} {first}")), apart)
    return found


def _reached(
    curves: Curves, sheaves: Mapping[str, Sheaf], arm: str, first: str, targets: Sequence[float], main: str, axis: str
) -> list[dict[str, Any]]:
    rows = []
    for target in targets:
        found, other = (
            sheaves[name].reached(
                target, None if axis == main else _spent(curves[name], sheaves[name].grid, main, axis)
            )
            for name in (arm, first)
        )
        is_known = math.isfinite(found.value) and math.isfinite(other.value) and other.value > 0
        rows.append(
            {
                "target": target,
                **_json(found),
                "num_seeds": sheaves[arm].num_reached(target),
                "share_of_first": found.value / other.value if is_known else None,
            }
        )
    return rows


def _spent(runs: Mapping[int, Curve], grid: Array, main: str, axis: str) -> Array:
    """What each seed has spent on one axis at each place of the other: [seeds, grid]."""
    return np.array([runs[seed].spent_at(main, grid, axis) for seed in sorted(runs)])


def _curve_json(sheaf: Sheaf) -> dict[str, Any]:
    band = sheaf.band()
    return {
        "spent": sheaf.grid.tolist(),
        "value": band.value.tolist(),
        "low": None if band.low is None else band.low.tolist(),
        "high": None if band.high is None else band.high.tolist(),
    }


def _points(curve: Curve) -> dict[str, list[float]]:
    """The evaluations of one run as they were."""
    return {axis: curve.spent[:, place].tolist() for place, axis in enumerate(AXES)} | {"score": curve.score.tolist()}


def _with_seeds(found: Estimate, values: Array) -> dict[str, Any]:
    return {**_json(found), "by_seed": values.tolist()}


def _json(found: Estimate) -> dict[str, float | None]:
    finite = (None if part is None or not math.isfinite(part) else part for part in found)
    return dict(zip(Estimate._fields, finite, strict=True))
