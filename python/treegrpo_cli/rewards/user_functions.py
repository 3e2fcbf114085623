"""People's own reward functions, in TRL's or verl's signature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.rewards.base import RewardFunction, Rewards
from treegrpo_cli.types import Rollout
from treegrpo_cli.user_code import call


def adapt(name: str, function: Callable[..., Any]) -> RewardFunction:
    """Return the function behind the protocol; raises UserError for a signature that is neither."""
    parameters = inspect.signature(function).parameters
    if "completions" in parameters:
        return TRLReward(name, function)
    if "solution_str" in parameters:
        return VerlReward(name, function)
    raise UserError(
        f"reward.functions: {name} must take (prompts, completions, **columns) as in TRL, "
        f"or (data_source, solution_str, ground_truth, extra_info) as in verl; got ({', '.join(parameters)})"
    )


@dataclass(frozen=True, slots=True)
class TRLReward:
    """`fn(prompts, completions, **columns) -> list[float | None]`, once for all rollouts.

    Prompts and completions are texts; lists of messages where every row's own prompt is one. Each column of
    the rows is a list, None where a row lacks it.
    """

    name: str
    function: Callable[..., Any]

    async def reward(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Call the function and check what it gives."""
        arguments = _accepted(self.name, self.function, _trl_arguments(rollouts))
        rewards = await _call(self.name, self.function, arguments)
        if not isinstance(rewards, (list, tuple)) and not hasattr(rewards, "tolist"):
            raise UserError(f"reward {self.name}: must return a list of numbers, got a {type(rewards).__name__}")
        values = rewards.tolist() if hasattr(rewards, "tolist") else rewards
        if not isinstance(values, (list, tuple)) or len(values) != len(rollouts):
            got = len(values) if isinstance(values, (list, tuple)) else 1
            raise UserError(f"reward {self.name}: returned {got} rewards for {len(rollouts)} completions")
        return [_checked(self.name, value) for value in values]


@dataclass(frozen=True, slots=True)
class VerlReward:
    """`compute_score(data_source, solution_str, ground_truth, extra_info) -> float`, once a rollout.

    `solution_str` is all text behind the prompt, observations included. A dict's `score` is the reward.
    """

    name: str
    function: Callable[..., Any]

    async def reward(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Call the function for each rollout, one after another."""
        return [await self._reward_one(rollout) for rollout in rollouts]

    async def _reward_one(self, rollout: Rollout) -> float | None:
        task = rollout.task
        offered = {
            "data_source": task.data_source,
            "solution_str": rollout.completion,
            "ground_truth": task.ground_truth,
            "extra_info": task.columns.get("extra_info") or {},
        }
        reward = await _call(self.name, self.function, _accepted(self.name, self.function, offered))
        if isinstance(reward, Mapping):
            if "score" not in reward:
                raise UserError(f"reward {self.name}: the dict it returned has no `score`")
            reward = reward["score"]
        return _checked(self.name, reward)


def _trl_arguments(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.task.columns)
    columns = {name: [rollout.task.columns.get(name) for rollout in rollouts] for name in names}
    if all(rollout.task.messages is not None for rollout in rollouts):
        prompts: list[Any] = [list(rollout.prompt_messages) for rollout in rollouts]
        completions: list[Any] = [list(rollout.messages) for rollout in rollouts]
    else:
        prompts = [rollout.prompt for rollout in rollouts]
        completions = [rollout.completion for rollout in rollouts]
    return {**columns, "prompts": prompts, "completions": completions}


def _accepted(name: str, function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Keep what the function takes; it must be offered all that it needs."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for parameter in named.values():
        if parameter.default is parameter.empty and parameter.name not in offered:
            raise UserError(f"reward {name}: needs {parameter.name!r}; {nearest(parameter.name, offered)}")
    return offered if takes_all else {key: value for key, value in offered.items() if key in named}


async def _call(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return await call(function, **arguments)
    except Exception as error:  # whatever the user's function raises is the user's to mend
        raise UserError(f"reward {name}: raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def _checked(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        reward = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {name}: must give numbers or None, got {value!r:.100}") from error
    if isinstance(value, str) or not math.isfinite(reward):
        raise UserError(f"reward {name}: must give finite numbers or None, got {value!r:.100}")
    return reward
