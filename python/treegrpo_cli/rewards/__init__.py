"""Rollouts -> outcome rewards: exact match, F1, format, and people's own functions."""

from treegrpo_cli.rewards.base import LeafReward, RewardFailure
from treegrpo_cli.rewards.load import load_rewards

__all__ = ["LeafReward", "RewardFailure", "load_rewards"]
