"""RewardConfig -> the functions that it names."""

from __future__ import annotations

from collections.abc import Callable

from treegrpo_cli.config import RewardConfig
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.rewards.answers import BuiltInReward, exact_match, f1
from treegrpo_cli.rewards.base import RewardFunction, WeightedSum
from treegrpo_cli.rewards.environment import environment_reward
from treegrpo_cli.rewards.format import format_reward
from treegrpo_cli.rewards.user_functions import adapt
from treegrpo_cli.types import Rollout
from treegrpo_cli.user_code import load_dotted


def load_rewards(config: RewardConfig) -> WeightedSum:
    """Return the weighted sum of the functions that the config names.

    Raises:
        UserError: an unknown name, a failing import, a signature that is neither TRL's nor verl's.
    """
    functions = [_load(name, config) for name in config.functions]
    weights = config.weights or [1.0] * len(functions)
    return WeightedSum(functions, weights, any(isinstance(f, BuiltInReward) and f.needs_answer for f in functions))


def _load(name: str, config: RewardConfig) -> RewardFunction:
    if ":" in name:
        function = load_dotted(name, "reward.functions")
        if not callable(function):
            raise UserError(f"reward.functions: {name} is no function")
        return adapt(name, function, config.timeout_s)
    built_in: dict[str, Callable[[Rollout], float]] = {
        "exact_match": exact_match,
        "f1": f1,
        "format": lambda rollout: format_reward(rollout, config),
        "environment": environment_reward,
    }
    if name not in built_in:
        raise UserError(
            f"reward.functions: unknown {name!r}; {nearest(name, built_in)} (your own: package.module:name)"
        )
    return BuiltInReward(name, built_in[name], needs_answer=name != "environment")
