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

    @property
    def mean(self) -> float:
        """Their mean."""
        return (self.sum + 1) / (self.count + 2)

    @property
    def mean_square(self) -> float:
        """The mean of their squares."""
        return (self.squares + 1) / (self.count + 2)

    def with_more(self, rewards: Sequence[float]) -> RewardsSoFar:
        """The same with those of another step."""
        squares = sum(reward * reward for reward in rewards)
        return RewardsSoFar(self.count + len(rewards), self.sum + sum(rewards), self.squares + squares)


def disagreement(rewards: Sequence[float], before: RewardsSoFar, kappa: float) -> float:
    """The variance of a prompt's next reward.

    >>> disagreement([1.0, 0.0, 0.0], RewardsSoFar(), 1.0)  # q = 1.5 / 4
    0.234375
    """
    weight = len(rewards) + kappa
    mean = (sum(rewards) + kappa * before.mean) / weight
    squares = (sum(reward * reward for reward in rewards) + kappa * before.mean_square) / weight
    return max(squares - mean * mean, 0.0)
