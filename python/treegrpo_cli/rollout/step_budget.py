"""What a step's trees have taken so far, against `budget.step_*`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treegrpo_cli.config import BudgetConfig
    from treegrpo_cli.rollout.grove import Grove

UNLIMITED = 2**62


class StepBudget:
    """Counts the groves that it was told of, from the start of a step's rollout."""

    def __init__(self, limits: BudgetConfig) -> None:
        self.limits = limits
        self.groves: list[Grove] = []
        self._start = time.monotonic()

    def watch(self, groves: Sequence[Grove]) -> None:
        """Count these too."""
        self.groves += groves

    def is_reached(self) -> bool:
        """Whether nothing more is to be started."""
        limits = self.limits
        spent = [
            (sum(grove.generated_tokens for grove in self.groves), limits.step_tokens),
            (sum(grove.num_tool_calls for grove in self.groves), limits.step_tool_calls),
            (time.monotonic() - self._start, limits.step_seconds),
        ]
        return not self.leaves_left() or any(limit and amount >= limit for amount, limit in spent)

    def leaves_left(self) -> int:
        """How many more chains may be started."""
        if not self.limits.step_leaves:
            return UNLIMITED
        return max(self.limits.step_leaves - sum(grove.num_leaves for grove in self.groves), 0)
