"""Samples of questions -> what an evaluation says: means with intervals, pass@k, votes, and what failed.

Intervals are over questions: samples of one question are no independent ones, so a question counts by its own mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treegrpo_cli.rewards import LeafReward
from treegrpo_cli.rewards.answers import answer_of, normalise
from treegrpo_cli.rewards.base import short_names
from treegrpo_cli.rollout.collect import Grown
from treegrpo_cli.rollout.failures import Failure
from treegrpo_cli.run.intervals import Mean, mean_with_interval

if TYPE_CHECKING:
    from treegrpo_cli.config import RewardConfig

REWARD = "reward"
"""What the weighted sum is called beside the functions' names."""


def score_names(reward: RewardConfig) -> list[str]:
    """What evaluations while training are told by: a function each, and beside several `reward`, their sum."""
    names = short_names(reward.evaluated.functions)
    return [*names, REWARD] if len(names) > 1 else names


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain that was played to its end: what it is worth, and its last answer (None: it gave none)."""

    worth: LeafReward
    answer: str | None


@dataclass(slots=True)
class Evaluation:
    """`num_samples` chains a question, as far as they could be played; `functions` are the rewards' short names."""

    functions: Sequence[str]
    num_samples: int
    questions: dict[int, list[Chain]] = field(default_factory=dict)
    """Number of a question -> its chains; those that failed are not there."""
    failures: list[Failure] = field(default_factory=list)

    def add(self, grown: Grown) -> list[float]:
        """Take the chains of a question, and return the rewards that they have."""
        self.failures += grown.failures
        leaves = [(tree, leaf, worth) for tree in grown.trees for leaf, worth in tree.rewards.items()]
        chains = [Chain(worth, answer_of(tree.rollout(leaf))) for tree, leaf, worth in leaves]
        self.questions[grown.prompt.number] = chains
        return _rewards(chains)

    @property
    def num_unscored(self) -> int:
        """Chains without a reward: they failed, or a reward function left them out."""
        return self.num_samples * len(self.questions) - sum(len(_rewards(chains)) for chains in self._in_order())

    def means(self) -> dict[str, Mean]:
        """Function -> mean of its rewards over the questions that have any; beside several `reward`, their sum."""
        columns = {name: [_given(name, chains) for chains in self._in_order()] for name in self.functions}
        return {name: _mean_of_means(column) for name, column in columns.items()} | (
            {REWARD: self.reward()} if len(self.functions) > 1 else {}
        )

    def reward(self) -> Mean:
        """Mean of the weighted sum."""
        return _mean_of_means(_rewards(chains) for chains in self._in_order())

    def pass_at(self, k: int, threshold: float) -> Mean:
        """Mean over questions of the chance that the best of `k` chains has a reward of at least `threshold`.

        A question with fewer than `k` chains that are scored is left out.
        """
        passed = [[reward >= threshold for reward in _rewards(chains)] for chains in self._in_order()]
        return mean_with_interval([pass_at_k(len(one), sum(one), k) for one in passed if len(one) >= k])

    def voted(self) -> Mean | None:
        """Mean reward of the answer that most chains of a question give; None where nobody gave any.

        Answers are compared after normalisation; of equals the first one given wins, and its reward counts. A
        question without any answer counts by its first chain.
        """
        elected = [_elected([c for c in chains if c.worth.reward is not None]) for chains in self._in_order()]
        chosen = [chain for chain in elected if chain is not None]
        if all(chain.answer is None for chain in chosen):
            return None
        return mean_with_interval(_rewards(chosen))

    def _in_order(self) -> Iterator[list[Chain]]:
        """The questions in the order of the data: no sum depends on which was finished first."""
        return (self.questions[number] for number in sorted(self.questions))


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Return the chance that `k` of the samples, drawn without replacement, hold one that passed: unbiased for k <= n.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 4), pass_at_k(4, 2, 2)
    (0.25, 1.0, 0.8333333333333334)

    Source: Chen et al. 2021 (arXiv 2107.03374), 1 - C(n - c, k) / C(n, k).
    """
    draws = math.comb(num_samples, k)
    return (draws - math.comb(num_samples - num_passed, k)) / draws


def ks(num_samples: int) -> list[int]:
    """Return the k that pass@k is told for: powers of two up to n, and n.

    >>> ks(12)
    [1, 2, 4, 8, 12]
    """
    return sorted({2**i for i in range(num_samples.bit_length())} | {num_samples})


def _rewards(chains: Iterable[Chain]) -> list[float]:
    return [chain.worth.reward for chain in chains if chain.worth.reward is not None]


def _given(name: str, chains: Iterable[Chain]) -> list[float]:
    given = [chain.worth.by_function.get(name) for chain in chains]
    return [reward for reward in given if reward is not None]


def _elected(chains: Sequence[Chain]) -> Chain | None:
    votes = Counter(normalise(chain.answer) for chain in chains if chain.answer is not None)
    if not votes:
        return chains[0] if chains else None
    [(winner, _)] = votes.most_common(1)  # equals stand in the order in which they came
    return next(chain for chain in chains if chain.answer is not None and normalise(chain.answer) == winner)


def _mean_of_means(columns: Iterable[Sequence[float]]) -> Mean:
    return mean_with_interval([math.fsum(rewards) / len(rewards) for rewards in columns if rewards])
