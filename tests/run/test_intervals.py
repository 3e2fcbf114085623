"""Intervals of mean rewards, against Wilson's formula solved by hand."""

import math

import pytest
from treegrpo_cli.run.intervals import Z_95, mean_with_interval


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (150, 300)])
def test_bounds_are_the_rates_at_which_the_mean_would_be_just_significant(right: int, count: int) -> None:
    mean = mean_with_interval([1.0] * right + [0.0] * (count - right))
    assert mean.mean == pytest.approx(right / count)
    for bound in {mean.low, mean.high} - {0.0, 1.0}:
        assert abs(mean.mean - bound) / math.sqrt(bound * (1 - bound) / count) == pytest.approx(Z_95)
    assert (mean.low == 0) == (right == 0)
    assert (mean.high == 1) == (right == count)


def test_rewards_beyond_zero_and_one_have_the_normal_interval() -> None:
    mean = mean_with_interval([-1.0, 1.0, 3.0])
    assert (mean.mean, mean.num_values) == (1.0, 3)
    assert mean.high - mean.mean == pytest.approx(Z_95 * 2 / math.sqrt(3))


def test_no_values_have_no_mean() -> None:
    assert math.isnan(mean_with_interval([]).mean)
