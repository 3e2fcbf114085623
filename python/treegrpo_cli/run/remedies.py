"""Settings that do not fit a device -> the changes that would make them fit, in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from treegrpo_cli.config import Config

Change: TypeAlias = tuple[str, Any]
"""A dotted key and the value that it should have."""

SMALLEST_MICRO_BATCH = 1024
SHARES = tuple(percent / 100 for percent in range(95, 5, -5))
LORA_RANK = 16
SMALLER = "take a smaller model or a larger device"


def remedy(config: Config, least_share: float, fits: Callable[[Config], bool]) -> str:
    """Return what to set. What leaves the result as it is comes first; then no reference, then adapters.

    `least_share` of the device is what the engine cannot do without.
    """
    harmless = _harmless(config, least_share)
    alone = [next((one for one in variants if fits(changed(config, [one]))), None) for variants in harmless]
    if found := [one for one in alone if one is not None]:
        return f"set {', or '.join(map(_words, found))}"
    strongest = [variants[-1] for variants in harmless]
    for costly in ([], *([one] for one in _costly(config))):
        for number in range(len(strongest) + 1):
            chosen = [*costly, *strongest[:number]]
            if chosen and fits(changed(config, chosen)):
                return f"set {' and '.join(map(_words, _needed(config, chosen, fits)))}"
    return f"no setting makes it fit: {SMALLER}" + (
        ", or more scale.trainer_ranks" if config.scale.trainer_ranks else ""
    )


def _needed(config: Config, changes: list[Change], fits: Callable[[Config], bool]) -> list[Change]:
    """Leave out what the others do without."""
    for change in list(changes):
        others = [one for one in changes if one != change]
        if others and fits(changed(config, others)):
            changes = others
    return changes


def changed(config: Config, changes: Sequence[Change]) -> Config:
    """Return the settings with some of them changed."""
    for key, value in changes:
        section, name = key.split(".")
        table = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: table})
    return config


def _harmless(config: Config, least_share: float) -> list[list[Change]]:
    """Changes that leave the result as it is, each from its mildest to its strongest form."""
    may_sleep = config.sampler.sleep is False and not config.scale.max_staleness
    options: list[list[Change]] = [[("sampler.sleep", "auto")]] if may_sleep else []
    if not config.model.gradient_checkpointing:
        options.append([("model.gradient_checkpointing", True)])
    tokens = config.train.microbatch_tokens
    if smaller := [tokens >> shift for shift in range(1, 12) if tokens >> shift >= SMALLEST_MICRO_BATCH]:
        options.append([("train.microbatch_tokens", number) for number in smaller])
    if lower := [share for share in SHARES if least_share <= share < config.sampler.gpu_memory_utilization]:
        options.append([("sampler.gpu_memory_utilization", share) for share in lower])
    return options


def _costly(config: Config) -> list[Change]:
    """Changes of what is trained."""
    changes: list[Change] = []
    if config.loss.kl_coef > 0 and not config.model.lora_rank:
        changes.append(("loss.kl_coef", 0))
    if not config.model.lora_rank:
        changes.append(("model.lora_rank", LORA_RANK))
    return changes


def _words(change: Change) -> str:
    key, value = change
    return f"{key} = {json.dumps(value)}"
