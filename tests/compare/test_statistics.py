"""The numbers of a comparison are those of their definition, on random curves."""

import math
from typing import Any

import numpy as np
import pytest
from treegrpo_cli.compare.results import GRID_SIZE, Question, compare
from treegrpo_cli.plots.curves import AXES, Curve, curve_of, scores_of
from treegrpo_cli.plots.statistics import draw_again, iqm, meaning

from tests.compare import reference


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive way is slow."""
    monkeypatch.setattr("treegrpo_cli.plots.statistics.NUM_RESAMPLES", 300)


Runs = dict[str, dict[int, Curve]]


def random_curves(key: int, num_seeds: dict[str, int]) -> Runs:
    draw = np.random.default_rng(key)
    return {arm: {seed: random_curve(draw) for seed in range(number)} for arm, number in num_seeds.items()}


def random_curve(draw: np.random.Generator) -> Curve:
    """Some steps cost no tool calls, so that two evaluations stand at one place of that axis."""
    num = int(draw.integers(4, 9))
    steps = np.stack([draw.integers(50, 200, num), draw.integers(0, 3, num), draw.random(num) + 0.1], axis=1)
    return Curve(np.vstack([np.zeros(3), steps.cumsum(0)]), draw.random(num + 1).round(2))


def points(curve: Curve, axis: str) -> list[tuple[float, float]]:
    place = reference.AXES.index(axis)
    return [(float(spent), float(score)) for spent, score in zip(curve.spent[:, place], curve.score, strict=True)]


def other_points(curve: Curve, column: int) -> list[tuple[float, float]]:
    """What was spent on an axis against the tokens."""
    return [
        (float(tokens), float(other)) for tokens, other in zip(curve.spent[:, 0], curve.spent[:, column], strict=True)
    ]


def drawn(number: int, key: str) -> list[list[int]]:
    return [list(map(int, row)) for row in draw_again(number, key)]


def check(found: dict[str, Any], value: float, resampled: list[float]) -> None:
    low, high = reference.interval(resampled)
    for name, expected in (("value", value), ("low", low), ("high", high)):
        assert found[name] == (None if math.isinf(expected) else pytest.approx(expected, abs=1e-9)), name


@pytest.mark.parametrize("axis", ["tokens", "seconds"])
@pytest.mark.parametrize("num_seeds", [{"a": 2, "b": 2}, {"a": 5, "b": 5}, {"a": 4, "b": 7}])
def test_final_area_differences_and_wins_are_those_of_the_definition(num_seeds: dict[str, int], axis: str) -> None:
    curves = random_curves(7, num_seeds)
    results = compare(curves, Question("f", axis, 0.0))
    end = min(points(curve, axis)[-1][0] for runs in curves.values() for curve in runs.values())
    assert results["compared_up_to"] == end
    values = {
        "final": {
            arm: [reference.score_at(points(c, axis), end) for c in runs.values()] for arm, runs in curves.items()
        },
        "area": {
            arm: [reference.mean_score(points(c, axis), end) for c in runs.values()] for arm, runs in curves.items()
        },
    }
    for name, by_arm in values.items():
        for arm in results["arms"]:
            mine = by_arm[arm["name"]]
            resampled = reference.again(mine, drawn(len(mine), arm["name"]))
            assert arm[name]["by_seed"] == pytest.approx(mine)
            check(arm[name], reference.iqm(mine), [reference.iqm(one) for one in resampled])
        against = results["arms"][1]["against_first"][name]
        first, second = by_arm["a"], by_arm["b"]
        apart = [b - a for a, b in zip(first, second, strict=False)]
        resampled = reference.again(apart, drawn(len(apart), "b a"))
        check(against["difference"], reference.iqm(apart), [reference.iqm(one) for one in resampled])
        pairs = zip(
            reference.again(second, drawn(len(second), "b")),
            reference.again(first, drawn(len(first), "a")),
            strict=True,
        )
        better = [reference.wins(mine, theirs) for mine, theirs in pairs]
        check(against["probability_of_improvement"], reference.wins(second, first), better)


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_curves_and_what_is_spent_until_a_score_are_those_of_the_definition(num_seeds: int) -> None:
    curves = random_curves(11, {"a": num_seeds, "b": num_seeds})
    targets = [0.3, 0.55, 0.7, 2.0]
    results = compare(curves, Question("f", "tokens", 350.0, targets))
    assert results["compared_up_to"] == 350
    grid = [350 * place / (GRID_SIZE - 1) for place in range(GRID_SIZE)]
    for arm in results["arms"]:
        runs = curves[arm["name"]].values()
        each = [[reference.score_at(points(curve, "tokens"), x) for x in grid] for curve in runs]
        curve = arm["curves"]["tokens"]
        assert curve["spent"] == pytest.approx(grid)
        assert curve["value"] == pytest.approx(reference.mean_curve(each))
        assert all(
            low <= value <= high for low, value, high in zip(curve["low"], curve["value"], curve["high"], strict=True)
        )
        place = GRID_SIZE // 2
        everything = drawn(num_seeds, arm["name"])
        middle = [reference.iqm([each[seed][place] for seed in row]) for row in everything]
        assert (curve["low"][place], curve["high"][place]) == pytest.approx(reference.interval(middle))
        for axis in AXES:
            column = reference.AXES.index(axis)
            spent = [[reference.score_at(other_points(one, column), x) for x in grid] for one in runs]
            for found, target in zip(arm["reached"][axis], targets, strict=True):
                value = reference.reached(reference.mean_curve(spent), reference.mean_curve(each), target)
                assert found["value"] == (None if math.isinf(value) else pytest.approx(value))
                assert found["num_seeds"] == sum(max(one) >= target for one in each)
        # the whole distribution on one axis
        found = arm["reached"]["tokens"][1]
        cached: dict[tuple[int, ...], float] = {}
        for row in everything:
            key = tuple(sorted(row))
            if key not in cached:
                cached[key] = reference.reached(grid, reference.mean_curve([each[seed] for seed in key]), 0.55)
        low, high = reference.interval([cached[tuple(sorted(row))] for row in everything])
        assert found["low"] == (None if math.isinf(low) else pytest.approx(low))
        assert found["high"] == (None if math.isinf(high) else pytest.approx(high))


def test_the_share_of_the_first_arm_is_told_where_both_reach_a_score() -> None:
    slow = {seed: line(0.0, 1.0, 100) for seed in range(3)}
    fast = {seed: line(0.0, 2.0, 100) for seed in range(3)}
    results = compare({"slow": slow, "fast": fast}, Question("f", "tokens", 100, [0.5, 1.5]))
    [first, second] = results["arms"]
    assert [row["share_of_first"] for row in second["reached"]["tokens"]] == [pytest.approx(0.5), None]
    assert [row["value"] for row in first["reached"]["tokens"]] == [pytest.approx(50), None]


def test_targets_are_shares_of_the_best_gain_and_the_first_arm_s_last_score() -> None:
    slow, fast = ({seed: line(0.2, last, 100) for seed in range(2)} for last in (0.33339, 0.6))
    assert compare({"slow": slow, "fast": fast}, Question("f", "tokens", 100))["targets"] == [0.3333, 0.4, 0.5, 0.56]


def test_one_seed_has_no_interval() -> None:
    [arm] = compare({"a": {0: line(0.0, 1.0, 10)}}, Question("f", "tokens", 10))["arms"]
    assert (arm["statistic"], arm["final"]) == ("one seed", {"value": 1.0, "low": None, "high": None, "by_seed": [1.0]})
    assert arm["curves"]["tokens"]["low"] is None


def test_numbers_do_not_depend_on_the_order_in_which_seeds_came() -> None:
    curves = random_curves(3, {"a": 5, "b": 5})
    turned = {arm: dict(reversed(runs.items())) for arm, runs in curves.items()}
    assert compare(curves, Question("f", "tokens", 0.0)) == compare(turned, Question("f", "tokens", 0.0))


def test_arms_without_a_common_seed_have_no_difference() -> None:
    curves = {"a": {0: line(0.0, 1.0, 10)}, "b": {1: line(0.0, 0.5, 10)}}
    against = compare(curves, Question("f", "tokens", 10))["arms"][1]["against_first"]
    assert (against["seeds"], against["final"]["difference"]) == ([], None)
    assert against["final"]["probability_of_improvement"]["value"] == 0.0


@pytest.mark.parametrize("number", range(1, 13))
def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end(number: int) -> None:
    values = np.random.default_rng(number).random(number)
    assert float(iqm(values)) == pytest.approx(reference.iqm(list(map(float, values))))
    middle = number - 2 * (number // 4)
    assert meaning(number) == (
        "one seed"
        if number == 1
        else f"mean of {number} seeds"
        if number < 4
        else f"mean of the middle {middle} of {number} seeds"
    )


def test_a_curve_adds_up_what_steps_took_and_knows_its_scores() -> None:
    step = {"tree/generated_tokens": 10.0, "tree/num_tool_calls": 2.0, "step_time": 0.5}
    lines = [{"step": 0, "eval/f": 0.1, "eval/f_low": 0.0, "eval/num_questions": 3}, {"step": 1, **step}]
    lines += [{"step": 2, **step}, {"step": 2, "eval/f": 0.4}]
    curve = curve_of(lines, "f")
    assert curve.spent.tolist() == [[0, 0, 0], [20, 4, 1.0]]
    assert curve.score.tolist() == [0.1, 0.4]
    assert scores_of(lines) == ["f"]
    with pytest.raises(ValueError, match="eval/g"):
        curve_of(lines, "g")


def line(first: float, last: float, end: float) -> Curve:
    return Curve(np.array([[0, 0, 0], [end, end, end]], float), np.array([first, last]))
