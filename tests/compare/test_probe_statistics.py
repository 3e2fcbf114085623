"""What a probe says of gradients whose means and covariances are known, and pair by pair against the definition."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from treegrpo_cli.compare.probe_statistics import (
    ArmFigures,
    Draws,
    Interval,
    Products,
    Rolled,
    compare,
    figures,
    products,
)

Gradients = NDArray[np.float32]
"""[R, P, D]"""


def draw(seed: int, mean: NDArray[np.float64], noise: float, num_repeats: int) -> Gradients:
    """Repeats of prompts whose contributions have this mean, [P, D], and noise² on the diagonal of their covariance."""
    normal = np.random.default_rng(seed).normal(size=(num_repeats, *mean.shape))
    return (mean + noise * normal).astype(np.float32)


def rolled(ours: Gradients, reference: Gradients, tokens: float = 100.0, **columns: Any) -> Rolled:
    one = np.ones(ours.shape[:2])
    given: dict[str, Any] = {
        "tokens": tokens * one,
        "tool_calls": one,
        "seconds": np.ones(len(ours)),
        "grown": one,
        "alive": one,
        "nodes": one,
        "live_nodes": one,
    }
    common = np.ones(ours.shape[1], dtype=np.bool_)
    own_reference = products(reference, reference)
    return Rolled(products(ours, ours), products(ours, reference), own_reference, common, **(given | columns))


def means(num_prompts: int = 16, size: int = 6) -> NDArray[np.float64]:
    """Contributions that agree in one direction and differ in the others."""
    mean = 0.5 * np.random.default_rng(1).normal(size=(num_prompts, size))
    mean[:, 0] += 1.0
    return mean


def by_pairs(ours: Gradients, other: Gradients) -> dict[str, float]:
    """The definition, pair of repeats by pair of repeats."""
    repeats = range(len(ours))
    pairs = list(itertools.permutations(repeats, 2))
    sums, other_sums = ours.astype(float).sum(axis=1), other.astype(float).sum(axis=1)
    signal = sum(float(sums[i] @ other_sums[j]) for i, j in pairs) / len(pairs)
    prompts = range(ours.shape[1])
    alone = [sum(float(ours[i, p] @ other[j, p]) for i, j in pairs) / len(pairs) for p in prompts]
    squares = [sum(float(ours[i, p] @ other[i, p]) for i in repeats) / len(ours) for p in prompts]
    return {
        "signal": signal,
        "joint_variance": sum(float(sums[i] @ other_sums[i]) for i in repeats) / len(ours) - signal,
        "prompt_signal": sum(alone),
        "variance": sum(squares) - sum(alone),
    }


def test_signal_and_variance_are_those_of_all_pairs_of_repeats() -> None:
    ours = draw(0, means(5), 2.0, 4)
    found = figures(rolled(ours, ours), Draws.once(5, 4))
    for name, value in by_pairs(ours, ours).items():
        assert float(found[name][0]) == pytest.approx(value, rel=1e-5, abs=1e-4), name


def test_signal_and_variance_have_no_bias() -> None:
    mean, noise, num_repeats = means(), 1.5, 3
    found = []
    for seed in range(400):
        ours = draw(seed, mean, noise, num_repeats)
        values = figures(rolled(ours, ours), Draws.once(len(mean), num_repeats))
        found.append([float(values[name][0]) for name in ("signal", "prompt_signal", "variance", "joint_variance")])
    total = mean.sum(axis=0)
    variance = noise**2 * mean.size
    expected = [float(total @ total), float((mean * mean).sum()), variance, variance]
    error = np.std(found, axis=0) / math.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 4 * error)
    assert np.all(error < 0.06 * np.array(expected))


def test_the_ratio_of_two_arms_comes_out_as_their_means_and_variances_have_it() -> None:
    """Half the variance for one and a half times the tokens: 2 / 1.5, whatever constant the loss is multiplied by."""
    mean = means(40)
    first = draw(0, mean, 1.0, 40)
    other = 7.0 * draw(1, mean, math.sqrt(0.5), 40)
    _, found = compare([rolled(first, first), rolled(other, first, tokens=150.0)])
    for name in ("quality_per_token", "prompt_quality_per_token", "aligned_quality_per_token"):
        ratio = found.relative[name]
        assert ratio.value == pytest.approx(2 / 1.5, rel=0.1), name
        assert ratio.low < 2 / 1.5 < ratio.high
    assert found.relative["tokens"].value == pytest.approx(1.5)
    assert found.relative["quality_per_tool_call"].value == pytest.approx(2.0, rel=0.1)


def test_intervals_hold_the_true_ratio_about_as_often_as_they_say() -> None:
    mean, held = means(24), 0
    for seed in range(60):
        first, other = draw(2 * seed, mean, 2.0, 5), draw(2 * seed + 1, mean, 2.0, 5)
        _, found = compare([rolled(first, first), rolled(other, first)], num_resamples=400, seed=seed)
        ratio = found.relative["prompt_quality_per_token"]
        held += ratio.low <= 1.0 <= ratio.high
    assert held >= 51  # of 60: 95% would be 57, and 51 or fewer come once in 300 times


def test_an_arm_compared_with_itself_has_ratio_one_without_doubt() -> None:
    ours = draw(0, means(), 1.0, 4)
    _, found = compare([rolled(ours, ours)] * 2, num_resamples=200)
    assert found.relative["quality_per_token"] == Interval(1.0, 1.0, 1.0)
    assert found.relative["cosine"] == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.2, 2.0])
def test_bias_shows_in_the_cosine_and_not_in_the_quality(angle: float) -> None:
    mean = np.zeros((20, 6))
    mean[:, 0] = 1.0
    turned = np.zeros((20, 6))
    turned[:, 0], turned[:, 1] = math.cos(angle), math.sin(angle)
    reference, ours = draw(0, mean, 0.5, 30), draw(1, turned, 0.5, 30)
    first, found = compare([rolled(draw(2, mean, 0.5, 30), reference), rolled(ours, reference)], num_resamples=500)
    cosine = found.absolute["cosine"]
    assert cosine.value == pytest.approx(math.cos(angle), abs=0.05)
    assert cosine.low - 0.02 <= math.cos(angle) <= cosine.high + 0.02
    assert first.absolute["cosine"].value == pytest.approx(1.0, abs=0.03)
    assert found.relative["quality_per_token"].value == pytest.approx(1.0, rel=0.15)
    aligned = math.cos(angle) ** 2 if angle < math.pi / 2 else 0.0
    assert found.relative["aligned_quality_per_token"].value == pytest.approx(aligned, abs=0.1)


def test_draws_that_two_arms_share_do_not_pass_for_agreement() -> None:
    """Without a signal the same noise in both arms is no cosine: a repeat never meets itself."""
    noise = draw(0, np.zeros((50, 6)), 1.0, 6)
    found = products(noise, noise)
    assert abs(float(found.between.sum())) < 0.2 * float(found.within.sum())
    shifted = draw(0, means(50), 1.0, 6)
    cross = figures(rolled(shifted, shifted + noise), Draws.once(50, 6))["cosine"]
    assert float(cross[0]) == pytest.approx(1.0, abs=0.1)


def test_a_prompt_drawn_twice_does_not_agree_with_itself() -> None:
    """Prompts that point in directions of their own: resamples must not find a common one."""
    mean = np.eye(12)
    ours = mean[None].repeat(3, axis=0).astype(np.float32)
    arm = rolled(ours, ours)
    drawn = figures(arm, Draws.resampled(12, 3, 4000, seed=0))
    assert float(drawn["signal"].mean()) == pytest.approx(float(figures(arm, Draws.once(12, 3))["signal"][0]), rel=0.01)


def test_a_common_direction_keeps_its_size_in_resamples() -> None:
    ours = np.ones((3, 12, 1), dtype=np.float32)
    drawn = figures(rolled(ours, ours), Draws.resampled(12, 3, 4000, seed=0))
    assert float(drawn["signal"].mean()) == pytest.approx(144.0, rel=0.01)


def test_shares_are_over_what_was_grown() -> None:
    ours = draw(0, means(4), 1.0, 2)
    grown = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=float)
    alive = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=float)
    nodes, live_nodes = 4 * grown, 3 * alive
    arm = rolled(ours, ours, grown=grown, alive=alive, nodes=nodes, live_nodes=live_nodes)
    [found] = compare([arm], num_resamples=100)
    assert found.absolute["share_prompts"].value == pytest.approx(3 / 7)
    assert found.absolute["share_nodes"].value == pytest.approx(9 / 28)


def test_prompts_that_the_reference_did_not_meet_are_left_out_of_the_cosine() -> None:
    mean = means(6)
    ours, reference = draw(0, mean, 0.01, 5), draw(1, mean, 0.01, 5)
    reference[:, 4:] = 0.0
    ours[:, 4:] *= 100.0
    arm = rolled(ours, reference)
    common = Rolled(**{name: getattr(arm, name) for name in arm.__slots__} | {"common": np.arange(6) < 4})
    assert float(figures(arm, Draws.once(6, 5))["cosine"][0]) < 0.9
    assert float(figures(common, Draws.once(6, 5))["cosine"][0]) == pytest.approx(1.0, abs=1e-3)


def test_what_noise_hides_is_said_to_be_unknown() -> None:
    ours = np.stack([np.ones((3, 2)), -np.ones((3, 2))]).astype(np.float32)  # the product of the pair is negative
    first, found = compare([rolled(ours, ours)] * 2, num_resamples=100)
    assert first.absolute["quality_per_token"].value == 0.0
    assert math.isnan(found.relative["quality_per_token"].value)
    assert math.isnan(found.absolute["cosine"].value)


def test_what_nothing_is_spent_on_has_no_ratio() -> None:
    ours = draw(0, means(), 0.1, 4)
    arm = rolled(ours, ours, tool_calls=np.zeros((4, 16)))
    found: list[ArmFigures] = compare([arm, arm], num_resamples=100)
    assert math.isnan(found[1].relative["quality_per_tool_call"].value)
    assert found[1].relative["quality_per_token"].value == 1.0


def test_one_repeat_has_no_pairs() -> None:
    ours = draw(0, means(), 1.0, 1)
    with pytest.raises(ValueError, match="expected two repeats or more, got 1"):
        products(ours, ours)


def test_arms_of_different_size_are_refused() -> None:
    arms = [rolled(gradients, gradients) for gradients in (draw(0, means(4), 1.0, 3), draw(0, means(5), 1.0, 3))]
    with pytest.raises(ValueError, match="expected arms of one number"):
        compare(arms)


def test_the_example_of_the_module() -> None:
    ours = np.array([[1, 2, 3], [3, 2, 1]], dtype=np.float32)[:, :, None]
    assert {name: round(value, 9) for name, value in by_pairs(ours, ours).items()} == {
        "signal": 36.0,
        "joint_variance": 0.0,
        "prompt_signal": 10.0,
        "variance": 4.0,
    }
    found: Products = products(ours, ours)
    assert float(np.trace(found.between)) == 10.0
