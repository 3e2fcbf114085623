"""`environment.workers` -> worlds and rewards in processes of their own, behind the protocols that trees know.

The driver (the process that steps the engine) holds handles; states stay in the worker that made them, and rewards run
there. A tree belongs to one worker. What crosses is plain data (`plain.py`), in frames over a socket (`frames.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treegrpo_cli.envs import load_environment
from treegrpo_cli.rewards import load_rewards
from treegrpo_cli.workers.environment import WorkerEnvironment
from treegrpo_cli.workers.pool import Pool
from treegrpo_cli.workers.rewards import WorkerRewards

if TYPE_CHECKING:
    from treegrpo_cli.config import Config, RewardConfig
    from treegrpo_cli.envs import Environment
    from treegrpo_cli.rewards.base import Rewards

__all__ = ["WorkerEnvironment", "abandon", "open_environment", "open_rewards"]


def open_environment(config: Config) -> Environment[Any]:
    """Return the world that the config names: in this process, or in `environment.workers` others.

    Raises UserError as `load_environment` does, wherever the world is loaded.
    """
    limits = config.limits.resolved
    if not config.environment.workers:
        return load_environment(config.environment, limits)
    return WorkerEnvironment(Pool(config.environment, limits), config.environment)


def open_rewards(environment: Environment[Any], config: RewardConfig) -> Rewards:
    """Return the reward functions that the config names, where the states of `environment` live."""
    if isinstance(environment, WorkerEnvironment):
        return WorkerRewards(environment, config)
    return load_rewards(config)


def abandon(environment: Environment[Any]) -> None:
    """End the processes of a world that nobody will play in, where it has any."""
    if isinstance(environment, WorkerEnvironment):
        environment.pool.kill()
