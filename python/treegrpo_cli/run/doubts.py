"""What a step, or a rollout, has brought -> lines that say, once each, why a run that looks well learns nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from treegrpo_cli.rollout.tree import Tree
from treegrpo_cli.types import FLAT

NUM_STEPS = 3
"""So many steps in a row are no accident."""

ENGINE_TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}
"""Mean |log-probability of the trainer - of the engine| of a sampled token, in nats, from which they are two policies.
2e-5 is usual in float32 and 0.01 to 0.02 in bfloat16: five times as much, and more, is no rounding."""

GROWTH = 2.0
"""How many times the mismatch that was said is worth another line."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What trees have in common; counts are sums over them."""

    num_leaves: int = 0
    """Kept ones."""
    num_scored: int = 0
    num_tool_calls: int = 0
    num_failed_tool_calls: int = 0
    """Those that raised, and those that closed their branch."""
    low: float = math.inf
    high: float = -math.inf
    """Of the rewards."""

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Self:
        """Count a step's trees."""
        rewards = [worth.reward for tree in trees for worth in tree.rewards.values() if worth.reward is not None]
        closed = sum(failure.kind == "tool" for tree in trees for failure in tree.failures)
        return cls(
            num_leaves=sum(len(tree.rewards) for tree in trees),
            num_scored=len(rewards),
            num_tool_calls=sum(tree.num_tool_calls for tree in trees) + closed,
            num_failed_tool_calls=sum(tree.num_failed_tool_calls for tree in trees) + closed,
            low=min(rewards, default=math.inf),
            high=max(rewards, default=-math.inf),
        )

    def __add__(self, other: Signs) -> Signs:
        return Signs(
            self.num_leaves + other.num_leaves,
            self.num_scored + other.num_scored,
            self.num_tool_calls + other.num_tool_calls,
            self.num_failed_tool_calls + other.num_failed_tool_calls,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def is_flat(self) -> bool:
        """Whether there are rewards, and all are equal."""
        return self.num_scored > 1 and self.high - self.low <= FLAT


class Doubts:
    """Looks at one step after another, and warns of each thing once.

    `tools` are the environment's schemas. A rollout is one look at all of it, with `num_steps` 1.
    """

    def __init__(
        self, warn: Callable[[str], None], tools: Sequence[Mapping[str, Any]], num_steps: int = NUM_STEPS
    ) -> None:
        self._warn, self._num_steps = warn, num_steps
        self._tools = [str(tool.get("function", tool).get("name", "nameless")) for tool in tools]
        self._flat_steps = self._toolless_steps = 0
        self._said: set[str] = set()
        self._mismatch = 0.0

    def look(self, signs: Signs) -> None:
        """Take the next step's."""
        calls, failed = signs.num_tool_calls, signs.num_failed_tool_calls
        if calls and calls == failed:
            self._say(
                "failing",
                f"every tool call failed ({failed} of {calls}): check the tools and the services that they call",
            )
        if signs.num_leaves and not signs.num_scored:
            self._say(
                "unscored",
                f"none of {signs.num_leaves} leaves has a reward, so there is nothing to learn from: "
                "the reward functions returned None or failed",
            )
        self._toolless_steps = self._toolless_steps + 1 if signs.num_leaves and not calls else 0
        if self._tools and self._toolless_steps >= self._num_steps:
            self._say(
                "toolless",
                f"no tool was called{self._for_so_long}, although the environment has some ({', '.join(self._tools)}): "
                "does the prompt explain how to call them, does environment.dialect fit the model, "
                "is rollout.max_turn_tokens large enough?",
            )
        self._flat_steps = self._flat_steps + 1 if signs.is_flat else 0
        if self._flat_steps >= self._num_steps:
            self._say(
                "flat",
                f"all rewards are equal{self._for_so_long} (now {signs.low:g}), so there is nothing to learn from: "
                "are the questions too hard or too easy, and does the reward function understand the completions?",
            )

    def compare(self, mean: float, most: float, dtype: str) -> None:
        """Take how far engine and trainer were apart before a step's update, in nats a token; they compute in `dtype`.

        It is said of the first step that is far off, and again where it has grown.
        """
        if not mean > max(ENGINE_TOLERANCE[dtype], GROWTH * self._mismatch):
            return
        self._mismatch = mean
        self._warn(
            f"engine and trainer are two policies: their log-probabilities of a sampled token differ by {mean:.2g} "
            f"nats on average ({most:.2g} at most); rounding in {dtype} explains less than "
            f"{ENGINE_TOLERANCE[dtype]:g}, and training may not learn, or may diverge"
        )
        self._warn(
            "usual causes: weights that did not arrive (a tied LM head, adapters that were not merged), a quantised "
            "engine, an LM head in another precision, positions that scale with the engine's context (longrope: "
            "rollout.max_context_tokens), a temperature, top_p or top_k that only one of them applies, "
            "model.lora_dropout, which only the trainer applies; "
            "`treegrpo doctor` compares them on a tiny model"
        )

    @property
    def _for_so_long(self) -> str:
        return f" in {self._num_steps} steps" if self._num_steps > 1 else ""

    def _say(self, what: str, line: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._warn(line)
