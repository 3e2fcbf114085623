"""Exact match and F1 of the agent's last answer; what a tool showed cannot answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from treegrpo_cli.errors import UserError
from treegrpo_cli.rewards.base import Reward, RewardFailure
from treegrpo_cli.tags import last_answer
from treegrpo_cli.types import Rollout, Task


@dataclass(frozen=True, slots=True)
class BuiltInReward:
    """A reward of ours: a function of one rollout."""

    name: str
    function: Callable[[Rollout], float]
    needs_answer: bool = True
    """Whether it compares with the task's answer."""

    async def reward(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Return one reward a rollout; a failure where the row has no answer to compare with, say."""
        return [self._reward_one(rollout) for rollout in rollouts]

    def problem(self, tasks: Sequence[Task]) -> str | None:
        """None: rows without an answer are found when the data are read."""
        return None

    def _reward_one(self, rollout: Rollout) -> Reward:
        try:
            return self.function(rollout)
        except UserError as error:
            return RewardFailure(str(error))


def exact_match(rollout: Rollout) -> float:
    """Return 1 where the last answer equals one of the golden answers after normalisation, else 0.

    Source: SQuAD's evaluation, as Search-R1 and the paper use it.
    """
    answer = answer_of(rollout)
    return float(answer is not None and normalise(answer) in map(normalise, golden_answers(rollout)))


def f1(rollout: Rollout) -> float:
    """Return the best F1 of words between the last answer and a golden answer, after normalisation.

    Source: SQuAD's evaluation.
    """
    answer = answer_of(rollout)
    return 0.0 if answer is None else max(_word_f1(answer, golden) for golden in golden_answers(rollout))


def answer_of(rollout: Rollout) -> str | None:
    """Return the last answer in the agent's own turns; None where there is none."""
    answers = [last_answer(text) for text, _ in rollout.turns]
    return next((answer for answer in reversed(answers) if answer is not None), None)


def golden_answers(rollout: Rollout) -> list[str]:
    """Return the answers that count as right; the row has one, a list, or `{"target": …}` of either.

    Raises:
        UserError: the row has none.
    """
    truth = rollout.task.ground_truth
    target = truth.get("target") if isinstance(truth, Mapping) else truth
    answers = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    texts = [str(answer) for answer in answers if answer is not None]
    if not texts:
        raise UserError(f"reward: no answer to compare with in the row of {rollout.task.question!r:.100}")
    return texts


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces; a text that has nothing else keeps it.

    >>> normalise("The Hague!"), normalise("A")
    ('hague', 'a')

    Source: SQuAD's evaluation; the exception is ours, for answers such as "A" or "+".
    """
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    words = re.sub(r"\b(a|an|the)\b", " ", bare).split()
    return " ".join(words) or " ".join(text.lower().split())


def _word_f1(answer: str, golden: str) -> float:
    answer_words, golden_words = normalise(answer).split(), normalise(golden).split()
    common = sum((Counter(answer_words) & Counter(golden_words)).values())
    return 2 * common / (len(answer_words) + len(golden_words)) if common else 0.0
