"""Leaves of a prompt + what the run has got so far -> how much its next leaf's reward is in doubt.

For rewards of 0 and 1 it is q(1 - q), where q = (s + κ·m) / (k + κ) is the chance of a 1: k leaves of the prompt, s of
them 1, and κ leaves' worth of m, the run's mean so far. For others it is the variance of the same mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RewardsSoFar:
    """Of the leaves of a run's earlier steps, and of one that got 0 and one that got 1.

    >>> RewardsSoFar().mean
    0.5
    """

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0
    low: float = 0.0
    high: float = 1.0
    """All lie between these."""

    @property
    def mean(self) -> float:
        """Their mean."""
        return (self.sum + 1) / (self.count + 2)

    @property
    def mean_square(self) -> float:
        """The mean of their squares."""
        return (self.squares + 1) / (self.count + 2)

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """What is scaled to 0 and to 1; None where that is 0 and 1 themselves."""
        return None if (self.low, self.high) == (0.0, 1.0) else (self.low, self.high)

    @property
    def prior(self) -> float:
        """Their mean, so scaled."""
        return min(max((self.mean - self.low) / (self.high - self.low), 0.0), 1.0)

    def with_more(self, rewards: Sequence[float]) -> RewardsSoFar:
        """The same with those of another step."""
        squares = sum(reward * reward for reward in rewards)
        return RewardsSoFar(
            self.count + len(rewards),
            self.sum + sum(rewards),
            self.squares + squares,
            min([self.low, *rewards]),
            max([self.high, *rewards]),
        )


def disagreement(rewards: Sequence[float], before: RewardsSoFar, kappa: float) -> float:
    """The variance of a prompt's next reward.

    >>> disagreement([1.0, 0.0, 0.0], RewardsSoFar(), 1.0)  # q = 1.5 / 4
    0.234375
    """
    weight = len(rewards) + kappa
    mean = (sum(rewards) + kappa * before.mean) / weight
    squares = (sum(reward * reward for reward in rewards) + kappa * before.mean_square) / weight
    return max(squares - mean * mean, 0.0)
