"""Gradients of the same prompts, repeat by repeat, under each arm -> what a token of each buys, with intervals.

g(p, i) is what prompt p adds to the gradient of a step in repeat i, μ(p) its mean over all repeats that there could be.

    signal    |Σ_p μ(p)|², from pairs of different repeats: the mean of Σ_p g(p, i) · Σ_q g(q, j) over i ≠ j has
              exactly this mean, where the square of an average adds the noise of its own repeats
    variance  Σ_p of the mean of |g(p, i)|² less |μ(p)|²: the trace of the covariance of a step's gradient, as prompts
              are rolled independently of each other. `joint_variance` also has what repeats move in all prompts at once
              (a denominator, a budget that prompts share); elsewhere that is 0 on average, and noise
    quality   signal / variance: a step's noise is averaged out by so many fewer steps; over what a step costs it is the
              signal that a token buys

    three prompts' gradients along one axis, in two repeats: 1 2 3 and 3 2 1
    sums 6 and 6: signal 6 · 6 = 36; prompt by prompt the signal is 3 + 4 + 3 = 10, the variance
    (1 + 9)/2 - 3 + 4 - 4 + (9 + 1)/2 - 3 = 4

`quality` reads sums over prompts, `prompt_quality` Σ_p |μ(p)|² in place of the signal: what a prompt says of itself,
whether or not others agree. `aligned_quality` counts of the signal what lies along the reference's mean. All of them
are the same for an arm whose gradients are multiplied by a constant: denominators and units of its loss do not matter.

Intervals resample prompts, each with all its repeats and its place in every arm: repeats lie within a prompt, and arms
are compared on the same ones, so that this takes in the noise of both. A pair of different prompts counts w_p·w_q, a
prompt with itself w_p: drawn twice it stays one prompt, and its square is not counted as an agreement with another.
Seconds are a step's, and resample repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

NUM_RESAMPLES = 10_000
LOW, HIGH = 2.5, 97.5
"""Percentiles of a 95% interval."""

COSTS = ("token", "tool_call", "second")


@dataclass(frozen=True, slots=True)
class Products:
    """Inner products of P prompts' gradients, [P, P] each: within a repeat, and between two different ones."""

    within: Numbers
    between: Numbers


def products(left: Iterable[NDArray[np.float32]], right: Iterable[NDArray[np.float32]]) -> Products:
    """Return the mean products of `left` and `right`, [P, D] a repeat, the same repeats in both; two or more."""
    count, within = 0, np.zeros((0, 0))
    left_sum = right_sum = np.zeros((0, 0))
    for one, other in zip(left, right, strict=True):
        ours, theirs = one.astype(np.float64), other.astype(np.float64)
        if count == 0:
            within, left_sum, right_sum = ours @ theirs.T, ours.copy(), theirs.copy()
        else:
            within, left_sum, right_sum = within + ours @ theirs.T, left_sum + ours, right_sum + theirs
        count += 1
    if count < 2:
        raise ValueError(f"expected two repeats or more, got {count}")
    return Products(within / count, (left_sum @ right_sum.T - within) / (count * (count - 1)))


@dataclass(frozen=True, slots=True)
class Rolled:
    """What R repeats of an arm came to, over P prompts.

    own, cross: products with itself and with the reference · own_reference: the reference's with itself ·
    common [P] bool: prompts that the reference knows too · tokens, tool_calls [R, P] · seconds [R] ·
    grown, alive [R, P]: whether the prompt was grown, and its rewards differ · nodes, live_nodes [R, P]: turns that
    could learn, and those of them whose advantage is not 0.
    """

    own: Products
    cross: Products
    own_reference: Products
    common: NDArray[np.bool_]
    tokens: Numbers
    tool_calls: Numbers
    seconds: Numbers
    grown: Numbers
    alive: Numbers
    nodes: Numbers
    live_nodes: Numbers


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95% interval; NaN where nothing can be said, infinite where there is no bound."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """Figures of one arm by name; `relative` to the first arm: a ratio, of cosines a difference."""

    absolute: dict[str, Interval]
    relative: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Draws:
    """How often each prompt and each repeat counts, [B, P] and [B, R]; `pair` scales what pairs of prompts give."""

    prompts: Numbers
    repeats: Numbers
    pair: float

    @classmethod
    def once(cls, num_prompts: int, num_repeats: int) -> Draws:
        """Everything as it is."""
        return cls(np.ones((1, num_prompts)), np.ones((1, num_repeats)), 1.0)

    @classmethod
    def resampled(cls, num_prompts: int, num_repeats: int, count: int, seed: int) -> Draws:
        """As many prompts and repeats as there are, with replacement, `count` times."""
        draw = np.random.default_rng(seed)
        prompts = draw.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), count)
        repeats = draw.multinomial(num_repeats, np.full(num_repeats, 1 / num_repeats), count)
        # two different prompts are drawn together (P - 1)/P times on average
        pair = num_prompts / (num_prompts - 1) if num_prompts > 1 else 1.0
        return cls(prompts.astype(np.float64), repeats.astype(np.float64), pair)

    def summed(self, table: Numbers) -> Numbers:
        """Σ over all pairs of prompts of a table [P, P], [B]."""
        own = self.of_prompts(np.diagonal(table))
        pairs: Numbers = ((self.prompts @ table) * self.prompts).sum(axis=1) - self.prompts**2 @ np.diagonal(table)
        return own + self.pair * pairs

    def of_prompts(self, column: Numbers) -> Numbers:
        """Σ over prompts of a column [P], [B]."""
        total: Numbers = self.prompts @ column
        return total

    def of_repeats(self, column: Numbers) -> Numbers:
        """Mean over repeats of a column [R], [B]."""
        mean: Numbers = self.repeats @ column / self.repeats.sum(axis=1)
        return mean


def compare(arms: Sequence[Rolled], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> list[ArmFigures]:
    """Return the figures of each arm, and how they stand to the first one's; all arms rolled the same prompts.

    Raises ValueError for arms of different size.
    """
    shapes = {arm.tokens.shape for arm in arms}
    if len(shapes) != 1:
        raise ValueError(f"expected arms of one number of repeats and prompts, got {sorted(shapes)}")
    num_repeats, num_prompts = next(iter(shapes))
    as_is, drawn = Draws.once(num_prompts, num_repeats), Draws.resampled(num_prompts, num_repeats, num_resamples, seed)
    values, samples = [figures(arm, as_is) for arm in arms], [figures(arm, drawn) for arm in arms]
    return [
        ArmFigures(
            {name: _interval(float(value[name][0]), sample[name]) for name in value},
            {name: _relative(name, value, sample, values[0], samples[0]) for name in value if _compares(name)},
        )
        for value, sample in zip(values, samples, strict=True)
    ]


def figures(arm: Rolled, draws: Draws) -> dict[str, Numbers]:
    """Return every figure of an arm for each draw, [B]; NaN where it has no value."""
    tokens, calls = draws.of_prompts(arm.tokens.mean(axis=0)), draws.of_prompts(arm.tool_calls.mean(axis=0))
    costs = dict(zip(COSTS, (tokens, calls, draws.of_repeats(arm.seconds)), strict=True))
    found: dict[str, Numbers] = {}
    alone = _of_diagonal(draws)
    variance = alone(arm.own.within) - alone(arm.own.between)
    found["variance"] = variance
    found["joint_variance"] = draws.summed(arm.own.within) - draws.summed(arm.own.between)
    for prefix, total in (("", draws.summed), ("prompt_", alone)):
        signal = total(arm.own.between)
        found[f"{prefix}signal"] = signal
        for cost, spent in costs.items():
            found[f"{prefix}quality_per_{cost}"] = _over(np.maximum(signal, 0.0), variance * spent)
        ours, theirs, cross = _beside_reference(arm, total)
        seen = (ours > 0) & (theirs > 0)
        found[f"{prefix}cosine"] = np.where(seen, cross / np.sqrt(np.where(seen, ours * theirs, 1.0)), np.nan)
        toward = np.maximum(cross, 0.0) ** 2 / np.where(theirs > 0, theirs, np.nan)
        found[f"{prefix}aligned_quality_per_token"] = _over(toward, variance * tokens)
    found |= {f"{cost}s": spent for cost, spent in costs.items()}
    found["share_prompts"] = _over(draws.of_prompts(arm.alive.sum(axis=0)), draws.of_prompts(arm.grown.sum(axis=0)))
    found["share_nodes"] = _over(draws.of_prompts(arm.live_nodes.sum(axis=0)), draws.of_prompts(arm.nodes.sum(axis=0)))
    return found


def _of_diagonal(draws: Draws) -> Callable[[Numbers], Numbers]:
    return lambda table: draws.of_prompts(np.diagonal(table))


def _beside_reference(arm: Rolled, total: Callable[[Numbers], Numbers]) -> tuple[Numbers, Numbers, Numbers]:
    """|mean|² of the arm and of the reference, and their product, over the prompts that both know."""
    both = np.outer(arm.common, arm.common)
    tables = (arm.own.between, arm.own_reference.between, arm.cross.between)
    ours, theirs, cross = (total(np.where(both, table, 0.0)) for table in tables)
    return ours, theirs, cross


def _over(above: Numbers, below: Numbers) -> Numbers:
    """`above` / `below`; infinite over 0, and NaN for 0 / 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Numbers = above / np.maximum(below, 0.0)
        return ratio


def _compares(name: str) -> bool:
    """Signal and variance have the unit of an arm's loss, and no ratio to another arm's."""
    return not name.endswith(("signal", "variance"))


def _relative(
    name: str,
    value: dict[str, Numbers],
    sample: dict[str, Numbers],
    first: dict[str, Numbers],
    first_sample: dict[str, Numbers],
) -> Interval:
    is_difference = name.endswith("cosine")
    relate = np.subtract if is_difference else _over
    found = relate(value[name], first[name])[0]
    return _interval(found, relate(sample[name], first_sample[name]), -np.inf if is_difference else 0.0)


def _interval(value: float, sample: Numbers, least: float = -math.inf) -> Interval:
    """Percentiles of resamples; one that says nothing could be anything from `least` on, and widens both ends."""
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan)
    low = np.percentile(np.where(np.isnan(sample), least, sample), LOW, method="inverted_cdf")
    high = np.percentile(np.where(np.isnan(sample), np.inf, sample), HIGH, method="inverted_cdf")
    return Interval(float(value), float(low), float(high))
