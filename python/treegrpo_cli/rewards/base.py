"""Rollouts -> outcome rewards: the protocol, and the weighted sum of the functions that a run names.

A function that fails is data: the rollouts that it could not judge are unscored, and each says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from treegrpo_cli.types import MAX_REWARD, Rollout, Task


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """Why a function gave a rollout no reward although it should: one line, and the traceback of a user's own code."""

    reason: str
    trace: tuple[str, ...] = ()


Reward: TypeAlias = float | RewardFailure | None
"""What one function gives one rollout: a finite number; None where it leaves it unscored; why there is neither."""


@dataclass(frozen=True, slots=True)
class LeafReward:
    """What a leaf is worth: `reward`, the weighted sum, and beside it what each function gave.

    `reward` is None where a function gave None (it leaves the leaf unscored, no failure) or failed.
    """

    reward: float | None
    by_function: Mapping[str, float | None] = field(default_factory=dict)
    failure: RewardFailure | None = None
    true_reward: float | None = None
    """Where rewards are flipped (`reward.flip`): what it was before that."""


class RewardFunction(Protocol):
    """What a rollout is worth."""

    @property
    def name(self) -> str:
        """As it stands in `reward.functions`."""
        ...

    async def reward(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Return one reward a rollout; what fails is returned, not raised."""
        ...

    def problem(self, tasks: Sequence[Task]) -> str | None:
        """Say why it cannot judge rollouts of these tasks, as far as that is known before the first."""
        ...


class Rewards(Protocol):
    """All functions of a run together."""

    @property
    def names(self) -> list[str]:
        """What metrics and files call each function."""
        ...

    async def reward(self, rollouts: Sequence[Rollout]) -> list[LeafReward]:
        """Return what each rollout is worth; what fails is returned, not raised."""
        ...


def short_names(whole: Sequence[str]) -> list[str]:
    """What stands behind the colon of each dotted path, all of it where two share that.

    >>> short_names(["judge.py:rate", "exact_match"])
    ['rate', 'exact_match']
    """
    short = [name.rpartition(":")[2] for name in whole]
    return [one if short.count(one) == 1 else name for one, name in zip(short, whole, strict=True)]


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Σ weight · reward over `functions`; a rollout that one of them leaves unscored is unscored."""

    functions: Sequence[RewardFunction]
    weights: Sequence[float]
    needs_answer: bool
    """Whether every task must bring its answer."""

    @property
    def names(self) -> list[str]:
        """What metrics and files call each function."""
        return short_names([function.name for function in self.functions])

    def problems(self, tasks: Sequence[Task]) -> list[str]:
        """A line for each function that cannot judge rollouts of these tasks."""
        return [problem for function in self.functions if (problem := function.problem(tasks))]

    async def reward(self, rollouts: Sequence[Rollout]) -> list[LeafReward]:
        """Return what each rollout is worth."""
        columns = await asyncio.gather(*(function.reward(rollouts) for function in self.functions))
        return [self._sum(rewards) for rewards in zip(*columns, strict=True)]

    def _sum(self, rewards: Sequence[Reward]) -> LeafReward:
        failures = [reward for reward in rewards if isinstance(reward, RewardFailure)]
        plain = [None if isinstance(reward, RewardFailure) else reward for reward in rewards]
        scored = [reward for reward in plain if reward is not None]
        total = None
        if len(scored) == len(plain):
            total = sum(weight * reward for weight, reward in zip(self.weights, scored, strict=True))
        if total is not None and not abs(total) <= MAX_REWARD:
            failures.append(RewardFailure(f"reward {total:g} is too large, expected at most {MAX_REWARD:g}"))
        return LeafReward(
            None if failures else total,
            dict(zip(self.names, plain, strict=True)),
            failures[0] if failures else None,
        )
