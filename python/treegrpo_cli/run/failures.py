"""Failures of a step or a rollout -> counts, one line a kind, and an end where they are too many.

A failure is data until then: it is left out of every mean, and the run goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from treegrpo_cli.errors import FailedRunError, last_lines
from treegrpo_cli.rollout.failures import Failure, Kind

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.collect import Grown
    from treegrpo_cli.run.progress import Reporter

WHAT_FAILED: dict[Kind, str] = {
    "prompt": "a prompt cannot be used",
    "reset": "the environment failed to reset for a prompt",
    "tool": "a tool failed and closed its branch",
    "reward": "a reward function failed and left a leaf unscored",
}
MIN_PROMPTS = 16
"""A rollout is not ended before so many prompts: a few bad rows may well come first."""


class FailureLog:
    """Names each kind of failure once, the first time that it is seen, with its reason."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._named: set[Kind] = set()

    def name(self, failures: Iterable[Failure]) -> None:
        """Warn of kinds that are new, with the last lines of the user's own traceback."""
        for failure in failures:
            if failure.kind not in self._named:
                self._named.add(failure.kind)
                where = f"prompt {failure.prompt_id}" + ("" if failure.tree_id is None else f", tree {failure.tree_id}")
                what = WHAT_FAILED[failure.kind]
                self._reporter.warn(f"{what}: {failure.reason} ({where}; further ones are only counted)")
                for line in last_lines(failure.trace):
                    self._reporter.say(line)


class FailureCount:
    """How much of a step, or of a rollout so far, failed.

    A prompt that failed counts as as many leaves as the others have on average, or where all failed as those that would
    have been kept of it; a branch that a tool closed and a kept leaf whose reward failed count as one.
    """

    def __init__(self, config: Config) -> None:
        self._limit = config.train.max_failed_fraction
        self._leaves_kept = config.rollout.num_trees * config.rollout.leaves_kept
        self.num_prompts = self.num_branches = 0
        self.num_failed: Counter[Kind] = Counter()
        self._last = ""

    def add(self, grown: Grown) -> None:
        """Count a prompt whose last tree has ended."""
        self.num_prompts += 1
        kinds = Counter(failure.kind for failure in grown.failures)
        self.num_branches += kinds["tool"] + sum(len(tree.rewards) for tree in grown.trees)
        self.num_failed += kinds
        if grown.failures:
            self._last = f"prompt {grown.failures[-1].prompt_id}: {grown.failures[-1].reason}"

    @property
    def share(self) -> float:
        """Failed leaves over all that there should be; 0 where there should be none."""
        num_lost = self.num_failed["prompt"] + self.num_failed["reset"]
        others = self.num_prompts - num_lost
        lost = num_lost * (self.num_branches / others if others else self._leaves_kept)
        failed = lost + self.num_failed["tool"] + self.num_failed["reward"]
        return failed / max(lost + self.num_branches, 1)

    def metrics(self) -> dict[str, float]:
        """`failures/KIND`: the share of prompts, or of branches, that failed so."""
        of = {"prompt": self.num_prompts, "reset": self.num_prompts, "tool": self.num_branches}
        return {
            f"failures/{kind}": self.num_failed[kind] / max(of.get(kind, self.num_branches), 1)
            for kind in get_args(Kind)
        }

    def check(self, of: str) -> None:
        """Raise FailedRunError where more than `train.max_failed_fraction` of it, a step say, failed."""
        if self.share > self._limit:
            counts = ", ".join(f"{kind} {self.num_failed[kind]}" for kind in get_args(Kind) if self.num_failed[kind])
            raise FailedRunError(
                f"{self.share:.0%} of {of} failed ({counts}), more than train.max_failed_fraction = {self._limit:g}; "
                f"the last was {self._last}"
            )

    def check_so_far(self, of: str) -> None:
        """The same behind `MIN_PROMPTS` prompts."""
        if self.num_prompts >= MIN_PROMPTS:
            self.check(of)
