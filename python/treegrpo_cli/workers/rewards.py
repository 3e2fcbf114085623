"""Reward functions in other processes, behind the protocol of any: each tree's are asked where its states live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from treegrpo_cli.config import RewardConfig
from treegrpo_cli.errors import NoAnswerError, ToolError
from treegrpo_cli.free_time import free_timeout
from treegrpo_cli.rewards.base import LeafReward, RewardFailure, short_names
from treegrpo_cli.types import Rollout, Task
from treegrpo_cli.workers.environment import WorkerEnvironment

NO_TASK = Task("")
"""What a rollout is sent with: the worker knows its tree's."""


class WorkerRewards:
    """The functions that the config names, once in each worker: what they keep between calls is the worker's own."""

    def __init__(self, environment: WorkerEnvironment, config: RewardConfig) -> None:
        self._environment, self._timeout_s = environment, config.timeout_s
        self._functions = environment.pool.number()
        environment.pool.tell({"rewards": self._functions, "config": config.model_dump()})
        self.names = short_names(config.functions)

    async def reward(self, rollouts: Sequence[Rollout]) -> list[LeafReward]:
        """Return what each rollout of a tree is worth; one whose state is lost is unscored."""
        failures = [await self._lost(rollout.state) for rollout in rollouts]
        found = [rollout for rollout, failure in zip(rollouts, failures, strict=True) if failure is None]
        given = iter(await self._ask(found) if found else ())
        return [next(given) if failure is None else self._unscored(failure) for failure in failures]

    async def _lost(self, state: Any) -> RewardFailure | None:
        try:
            await self._environment.settle(state)
        except ToolError as error:
            return RewardFailure(f"reward: {error}", error.trace)
        return None

    async def _ask(self, rollouts: Sequence[Rollout]) -> list[LeafReward]:
        """The functions count their own time; where even their process is silent, so long again ends the wait."""
        limit_s = self._timeout_s * (len(rollouts) + 1)
        try:
            async with free_timeout(limit_s, urgent=False) as limit:
                return await self._ask_worker(rollouts)
        except ToolError as error:
            return [self._unscored(RewardFailure(f"reward: {error}", error.trace)) for _ in rollouts]
        except TimeoutError:
            if not limit.expired():
                raise
            reason = f"reward: its worker gave {NoAnswerError(limit_s).reason} (reward.timeout_s)"
            return [self._unscored(RewardFailure(reason)) for _ in rollouts]

    async def _ask_worker(self, rollouts: Sequence[Rollout]) -> list[LeafReward]:
        states = [rollout.state for rollout in rollouts]
        answer: list[LeafReward] = await self._environment.ask(
            states[0].tree,
            states,
            "reward",
            lambda: {
                "functions": self._functions,
                "rollouts": [replace(rollout, task=NO_TASK, state=rollout.state.number) for rollout in rollouts],
            },
        )
        return answer

    def _unscored(self, failure: RewardFailure) -> LeafReward:
        return LeafReward(None, dict.fromkeys(self.names), failure)
