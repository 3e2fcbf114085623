"""`[selection]` of the settings."""

from __future__ import annotations

from math import inf
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from treegrpo_cli.config.sections.base import Seconds


class SelectionConfig(BaseModel):
    """Which nodes a round expands; the rule's options go next to its name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    rule: str = "uniform"
    """The rule that chooses which nodes a round expands, by name or as your own function. Your own:
    `package.module:name` or `file.py:name`, a function of columns and candidates that returns a score for each
    candidate. Its keyword arguments are its options; two more are `temperature` (0 takes the best) and
    `replacement` (false)."""
    timeout_s: Seconds = 60.0
    """Seconds that a call of your own rule may take."""

    @property
    def is_own(self) -> bool:
        """Whether the rule is a function of the user's."""
        return ":" in self.rule

    @property
    def options(self) -> dict[str, Any]:
        """The rule's options as given."""
        given = dict(self.model_extra or {})
        return {name: value for name, value in given.items() if name not in DRAWING} if self.is_own else given

    @property
    def temperature(self) -> float:
        """Of draws by the scores of a user's own function."""
        return float((self.model_extra or {}).get("temperature", 0.0))

    @property
    def replacement(self) -> bool:
        """Whether such draws may name a node twice."""
        return bool((self.model_extra or {}).get("replacement", False))

    @model_validator(mode="after")
    def _rule_and_options_exist(self) -> SelectionConfig:
        from treegrpo_cli._core import resolve_selection_options

        if not self.is_own:
            resolve_selection_options(self.rule, self.options)
            return self
        given = self.model_extra or {}
        temperature, replacement = given.get("temperature", 0.0), given.get("replacement", False)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < inf:
            raise ValueError(f"temperature is {temperature!r:.60}, expected a number of 0 or more")
        if not isinstance(replacement, bool):
            raise ValueError(f"replacement is {replacement!r:.60}, expected true or false")
        if replacement and not temperature:
            raise ValueError("replacement draws by chance: give a temperature above 0 beside it")
        return self


DRAWING = ("temperature", "replacement")
"""Beside the options of a user's own rule: how draws follow from its scores."""
