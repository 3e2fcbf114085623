"""The statistics of a comparison the naive way: lists, loops and Python's own floats."""

import math
from itertools import pairwise

AXES = ("tokens", "tool_calls", "seconds")
Point = tuple[float, float]


def iqm(values: list[float]) -> float:
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return math.fsum(middle) / len(middle)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def interval(values: list[float]) -> tuple[float, float]:
    return percentile(values, 0.025), percentile(values, 0.975)


def again(values: list[float], draws: list[list[int]]) -> list[list[float]]:
    return [[values[place] for place in drawn] for drawn in draws]


def score_at(points: list[Point], x: float) -> float:
    """Straight between two points; as at the ends beyond them. Of points at one place the last counts."""
    kept = [
        point
        for point, following in zip(points, [*points[1:], None], strict=True)
        if following is None or following[0] > point[0]
    ]
    if x <= kept[0][0]:
        return kept[0][1]
    for (x0, y0), (x1, y1) in pairwise(kept):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return kept[-1][1]


def mean_score(points: list[Point], end: float) -> float:
    places = sorted({0.0, end, *(x for x, _ in points if 0 < x < end)})
    pieces = [(b - a) * (score_at(points, a) + score_at(points, b)) / 2 for a, b in pairwise(places)]
    return math.fsum(pieces) / end


def wins(mine: list[float], theirs: list[float]) -> float:
    return math.fsum((a > b) + (a == b) / 2 for a in mine for b in theirs) / (len(mine) * len(theirs))


def reached(spent: list[float], curve: list[float], target: float) -> float:
    for place, score in enumerate(curve):
        if score >= target:
            if place == 0:
                return spent[0]
            before = curve[place - 1]
            return spent[place - 1] + (spent[place] - spent[place - 1]) * (target - before) / (score - before)
    return math.inf


def mean_curve(curves: list[list[float]]) -> list[float]:
    return [iqm(list(column)) for column in zip(*curves, strict=True)]
