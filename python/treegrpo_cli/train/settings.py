"""Config -> what of it cannot be trained with, and what is hardly meant."""

from __future__ import annotations

from collections.abc import Callable

from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train.resolved_loss import unread_settings
from treegrpo_cli.train.schedule import rate_warning


def check_settings(config: Config, say: Callable[[str], None]) -> None:
    """Say what will not do what it seems to. Raises UserError for settings that cannot be trained with."""
    _check_whole_distribution(config)
    if warning := rate_warning(config):
        say(warning)
    for warning in unread_settings(config):
        say(warning)


def _check_whole_distribution(config: Config) -> None:
    """Refuse to sample from a part of the vocabulary: the ratio would compare two different distributions."""
    for key, value, whole in (("top_p", config.rollout.top_p, 1.0), ("top_k", config.rollout.top_k, 0)):
        if value != whole:
            raise UserError(f"rollout.{key}: training needs the whole distribution, set {key} = {whole}, got {value}")
