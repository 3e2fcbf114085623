"""Rollouts -> outcome rewards: exact match, F1, format, and people's own functions."""

from treegrpo_cli.rewards.load import load_rewards

__all__ = ["load_rewards"]
