"""Rollouts -> outcome rewards: exact match, F1, format, and people's own in TRL's or verl's signature.

Built-in rewards look at the agent's own turns: what a tool showed can neither answer nor break the format.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from treegrpo_cli.config import RewardConfig
from treegrpo_cli.dialects import last_answer
from treegrpo_cli.dotted import load_dotted
from treegrpo_cli.envs.calls import call
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.types import Rollout

Rewards = list[float | None]


class RewardFunction(Protocol):
    """Scores rollouts; None = unscored."""

    async def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Return one reward a rollout."""
        ...


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Σ weight · reward over `functions`; a rollout that one of them leaves unscored is unscored."""

    functions: Sequence[RewardFunction]
    weights: Sequence[float]
    needs_answer: bool
    """Whether every task must bring its answer."""

    async def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Return one finite reward, or None, for each rollout.

        Raises:
            UserError: names the function that failed, or did not give one finite number or None each.
        """
        columns = await asyncio.gather(*(function.score(rollouts) for function in self.functions))
        return [self._sum(rewards) for rewards in zip(*columns, strict=True)]

    def _sum(self, rewards: Sequence[float | None]) -> float | None:
        scored = [reward for reward in rewards if reward is not None]
        if len(scored) < len(rewards):
            return None
        return sum(weight * reward for weight, reward in zip(self.weights, scored, strict=True))


def load_rewards(config: RewardConfig) -> WeightedSum:
    """Return the weighted sum of the functions that the config names.

    Raises:
        UserError: an unknown name, a failing import, a signature that is neither TRL's nor verl's.
    """
    functions = [_load(name, config) for name in config.functions]
    weights = config.weights or [1.0] * len(functions)
    return WeightedSum(functions, weights, any(isinstance(f, AnswerReward) for f in functions))


def _load(name: str, config: RewardConfig) -> RewardFunction:
    if ":" in name:
        function = load_dotted(name, "reward.functions")
        if not callable(function):
            raise UserError(f"reward.functions: {name} is no function")
        return _adapt(name, function)
    built_in: dict[str, Callable[[Rollout], float]] = {
        "exact_match": exact_match,
        "f1": f1,
        "format": lambda rollout: format_reward(rollout, config),
    }
    if name not in built_in:
        raise UserError(
            f"reward.functions: unknown {name!r}; {nearest(name, built_in)} (your own: package.module:name)"
        )
    return AnswerReward(name, built_in[name])


@dataclass(frozen=True, slots=True)
class AnswerReward:
    """A built-in reward: compares the agent's last answer with the task's."""

    name: str
    function: Callable[[Rollout], float]

    async def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Return one reward a rollout."""
        return [self.function(rollout) for rollout in rollouts]


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


def _word_f1(answer: str, golden: str) -> float:
    answer_words, golden_words = normalise(answer).split(), normalise(golden).split()
    common = sum((Counter(answer_words) & Counter(golden_words)).values())
    return 2 * common / (len(answer_words) + len(golden_words)) if common else 0.0


def _adapt(name: str, function: Callable[..., Any]) -> RewardFunction:
    parameters = inspect.signature(function).parameters
    if "completions" in parameters:
        return TRLReward(name, function)
    if "solution_str" in parameters:
        return VerlReward(name, function)
    raise UserError(
        f"reward.functions: {name} must take (prompts, completions, **columns) as in TRL, "
        f"or (data_source, solution_str, ground_truth, extra_info) as in verl; got ({', '.join(parameters)})"
    )


@dataclass(frozen=True, slots=True)
class TRLReward:
    """`fn(prompts, completions, **columns) -> list[float | None]`, once for all rollouts.

    Prompts and completions are texts; lists of messages where every row's own prompt is one. Each column of
    the rows is a list, None where a row lacks it.
    """

    name: str
    function: Callable[..., Any]

    async def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Call the function and check what it gives."""
        arguments = _accepted(self.name, self.function, _trl_arguments(rollouts))
        rewards = await _call(self.name, self.function, arguments)
        if not isinstance(rewards, (list, tuple)) and not hasattr(rewards, "tolist"):
            raise UserError(f"reward {self.name}: must return a list of numbers, got a {type(rewards).__name__}")
        values = rewards.tolist() if hasattr(rewards, "tolist") else rewards
        if not isinstance(values, (list, tuple)) or len(values) != len(rollouts):
            got = len(values) if isinstance(values, (list, tuple)) else 1
            raise UserError(f"reward {self.name}: returned {got} rewards for {len(rollouts)} completions")
        return [_checked(self.name, value) for value in values]


@dataclass(frozen=True, slots=True)
class VerlReward:
    """`compute_score(data_source, solution_str, ground_truth, extra_info) -> float`, once a rollout.

    `solution_str` is all text behind the prompt, observations included. A dict's `score` is the reward.
    """

    name: str
    function: Callable[..., Any]

    async def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Call the function for each rollout, one after another."""
        return [await self._score_one(rollout) for rollout in rollouts]

    async def _score_one(self, rollout: Rollout) -> float | None:
        task = rollout.task
        offered = {
            "data_source": task.data_source,
            "solution_str": rollout.completion,
            "ground_truth": task.ground_truth,
            "extra_info": task.columns.get("extra_info") or {},
        }
        reward = await _call(self.name, self.function, _accepted(self.name, self.function, offered))
        if isinstance(reward, Mapping):
            if "score" not in reward:
                raise UserError(f"reward {self.name}: the dict it returned has no `score`")
            reward = reward["score"]
        return _checked(self.name, reward)


def _trl_arguments(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.task.columns)
    columns = {name: [rollout.task.columns.get(name) for rollout in rollouts] for name in names}
    if all(rollout.task.messages is not None for rollout in rollouts):
        prompts: list[Any] = [list(rollout.prompt_messages) for rollout in rollouts]
        completions: list[Any] = [list(rollout.messages) for rollout in rollouts]
    else:
        prompts = [rollout.prompt for rollout in rollouts]
        completions = [rollout.completion for rollout in rollouts]
    return {**columns, "prompts": prompts, "completions": completions}


def _accepted(name: str, function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Keep what the function takes; it must be offered all that it needs."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for parameter in named.values():
        if parameter.default is parameter.empty and parameter.name not in offered:
            raise UserError(f"reward {name}: needs {parameter.name!r}; {nearest(parameter.name, offered)}")
    return offered if takes_all else {key: value for key, value in offered.items() if key in named}


async def _call(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return await call(function, **arguments)
    except Exception as error:  # whatever the user's function raises is the user's to mend
        raise UserError(f"reward {name}: raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def _checked(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        reward = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {name}: must give numbers or None, got {value!r:.100}") from error
    if isinstance(value, str) or not math.isfinite(reward):
        raise UserError(f"reward {name}: must give finite numbers or None, got {value!r:.100}")
    return reward
