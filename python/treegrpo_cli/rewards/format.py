"""Exact match with the paper's format terms; what a tool showed cannot break the format."""

from __future__ import annotations

import re

from treegrpo_cli.config import RewardConfig
from treegrpo_cli.rewards.answers import answer_of, exact_match, golden_answers, normalise
from treegrpo_cli.types import Rollout


def format_reward(rollout: Rollout, config: RewardConfig) -> float:
    """Return exact match with format terms, of the inline dialect: a chat trace is never well-formed.

    | answer | well-formed | malformed |
    |---|---|---|
    | right | 1 | 1 − structure |
    | wrong | structure (+ retrieval where a golden answer was shown) | final_format |
    | none | – | 0 |

    Source: the script of the paper's code.
    """
    right, well_formed = exact_match(rollout) == 1.0, is_well_formed(rollout)
    if right:
        return 1.0 if well_formed else 1.0 - config.structure
    if well_formed:
        return config.structure + (config.retrieval if was_shown(rollout) else 0.0)
    return config.final_format if answer_of(rollout) is not None else 0.0


def is_well_formed(rollout: Rollout) -> bool:
    """Whether the rollout is (think, search, information)* think, answer, with white space alone between.

    `calculate` stands where `search` does. No tag may stand inside another; an observation is opaque.
    """
    *searches, (final, after) = rollout.turns or (("", ""),)
    called = all(_is_turn(text, "search|calculate") and _is_information(shown) for text, shown in searches)
    return called and _is_turn(final, "answer") and not after.strip()


_TAG = r"</?(?:think|search|calculate|information|answer)>"


def _is_turn(text: str, tags: str) -> bool:
    inner = rf"(?:(?!{_TAG}).)*"
    return re.fullmatch(rf"\s*<think>{inner}</think>\s*<({tags})>{inner}</\1>\s*", text, re.DOTALL) is not None


def _is_information(observation: str) -> bool:
    shown = observation.strip()
    return shown.startswith("<information>") and shown.endswith("</information>")


def was_shown(rollout: Rollout) -> bool:
    """Whether a golden answer stands in what the tools showed."""
    shown = [f" {normalise(text)} " for text in getattr(rollout.state, "results", ())]
    return any(f" {normalise(golden)} " in text for text in shown for golden in golden_answers(rollout))
