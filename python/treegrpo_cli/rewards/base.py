"""Rollouts -> outcome rewards: the protocol, and the weighted sum of the functions that a run names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from treegrpo_cli.types import Rollout

Rewards = list[float | None]


class RewardFunction(Protocol):
    """What a rollout is worth; None leaves it unscored."""

    async def reward(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Return one reward a rollout."""
        ...


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Σ weight · reward over `functions`; a rollout that one of them leaves unscored is unscored."""

    functions: Sequence[RewardFunction]
    weights: Sequence[float]
    needs_answer: bool
    """Whether every task must bring its answer."""

    async def reward(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Return one finite reward, or None, for each rollout.

        Raises:
            UserError: names the function that failed, or did not give one finite number or None each.
        """
        columns = await asyncio.gather(*(function.reward(rollouts) for function in self.functions))
        return [self._sum(rewards) for rewards in zip(*columns, strict=True)]

    def _sum(self, rewards: Sequence[float | None]) -> float | None:
        scored = [reward for reward in rewards if reward is not None]
        if len(scored) < len(rewards):
            return None
        return sum(weight * reward for weight, reward in zip(self.weights, scored, strict=True))
