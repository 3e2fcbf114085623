"""What the environment itself said a rollout is worth."""

from __future__ import annotations

import math

from treegrpo_cli.errors import UserError
from treegrpo_cli.types import Rollout


def environment_reward(rollout: Rollout) -> float:
    """Return the sum of the path's `StepResult.reward`; 0 where no step gave one: nothing was earned.

    Raises:
        UserError: the sum is not finite.
    """
    reward = rollout.env_reward
    if reward is not None and not math.isfinite(reward):
        raise UserError(f"reward environment: the rewards of the path's steps add up to {reward}")
    return reward or 0.0
