"""What a leaf is worth -> what is told of it: with chance `reward.flip` the mirror image, drawn by the leaf's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from treegrpo_cli._core import derive_seed
from treegrpo_cli.rewards.base import LeafReward, RewardFailure

if TYPE_CHECKING:
    from treegrpo_cli.config import RewardConfig

FLIPS = 0x666C6970
"""Ends the keys of these draws, so that they are no other's."""


def told(worth: LeafReward, config: RewardConfig, key: Sequence[int]) -> LeafReward:
    """Return the reward or, with chance `flip`, `flip_low + flip_high - reward`; the true one stands beside it.

    A reward outside of the two has no mirror image, and the leaf stays unscored.
    """
    if not config.flip or worth.reward is None:
        return worth
    if not config.flip_low <= worth.reward <= config.flip_high:
        reason = (
            f"reward {worth.reward:g} lies outside of reward.flip_low = {config.flip_low:g} and "
            f"reward.flip_high = {config.flip_high:g}, between which it would be flipped"
        )
        return replace(worth, reward=None, failure=RewardFailure(reason))
    is_flipped = derive_seed([*key, FLIPS]) < config.flip * 2**63
    reward = config.flip_low + config.flip_high - worth.reward if is_flipped else worth.reward
    return replace(worth, reward=reward, true_reward=worth.reward)
