"""People's own reward functions, in TRL's or verl's signature."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from treegrpo_cli.errors import NoAnswerError, UserCodeError, UserError, nearest
from treegrpo_cli.rewards.base import Reward, RewardFailure, RewardFunction
from treegrpo_cli.types import Rollout, Task
from treegrpo_cli.user_code import call, looking_at_answers, one_line


def adapt(name: str, function: Callable[..., Any], timeout_s: float) -> RewardFunction:
    """Return the function behind the protocol; raises UserError for a signature that is neither."""
    parameters = inspect.signature(function).parameters
    if "completions" in parameters:
        return TRLReward(name, function, timeout_s)
    if "solution_str" in parameters:
        return VerlReward(name, function, timeout_s)
    raise UserError(
        f"reward.functions: {name} must take (prompts, completions, **columns) as in TRL, "
        f"or (data_source, solution_str, ground_truth, extra_info) as in verl; got ({', '.join(parameters)})"
    )


class _Failed(Exception):  # noqa: N818 - never leaves this file
    """The function gave no reward; `failure` says why."""

    def __init__(self, reason: str, trace: tuple[str, ...] = ()) -> None:
        self.failure = RewardFailure(reason, trace)
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class TRLReward:
    """`fn(prompts, completions, **columns) -> list[float | None]`, once for all rollouts of a tree.

    Prompts and completions are texts; lists of messages where every row's own prompt is one. Each column of
    the rows is a list, None where a row lacks it. A function that takes `states` gets the environment's state at
    the end of each rollout, one that takes `rollouts` the `Rollout`s themselves: lists too, one entry a completion.
    A row's own column of either name goes before.
    """

    name: str
    function: Callable[..., Any]
    timeout_s: float
    """Seconds that one call may take."""

    async def reward(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Call the function and check what it gives: a wrong value costs its own rollout, a wrong shape all."""
        try:
            answer = await _call(self, _trl_arguments(rollouts))
            with _looking_at_answer(self.name):
                values = list(self._values(answer, len(rollouts)))
        except _Failed as failed:
            return [failed.failure for _ in rollouts]
        return [_checked(self.name, value) for value in values]

    def problem(self, tasks: Sequence[Task]) -> str | None:
        """Say which parameter no row has a column for, if any."""
        columns = {name for task in tasks for name in task.columns}
        return _missing(self.name, self.function, {*columns, *_trl_arguments(())})

    def _values(self, answer: Any, count: int) -> Sequence[Any]:
        if not isinstance(answer, (list, tuple)) and not hasattr(answer, "tolist"):
            raise _Failed(f"reward {self.name}: must return a list of numbers, got a {type(answer).__name__}")
        values = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(values, (list, tuple)) or len(values) != count:
            got = len(values) if isinstance(values, (list, tuple)) else 1
            raise _Failed(f"reward {self.name}: returned {got} rewards for {count} completions")
        return values


@dataclass(frozen=True, slots=True)
class VerlReward:
    """`compute_score(data_source, solution_str, ground_truth, extra_info) -> float`, once a rollout.

    `solution_str` is all text behind the prompt, observations included. A dict's `score` is the reward. A function
    that takes `state` gets the environment's state at the end of the rollout, one that takes `rollout` the
    `Rollout` itself; by TRL's names `states` and `rollouts` it gets them as the list of one.
    """

    name: str
    function: Callable[..., Any]
    timeout_s: float
    """Seconds that one call may take."""

    async def reward(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Call the function for each rollout, one after another; each may fail alone."""
        return [await self._reward_one(rollout) for rollout in rollouts]

    def problem(self, tasks: Sequence[Task]) -> str | None:
        """Say which parameter is none of verl's, if any."""
        return _missing(self.name, self.function, VERL_ARGUMENTS)

    async def _reward_one(self, rollout: Rollout) -> Reward:
        try:
            answer = await _call(self, _verl_arguments(rollout))
            with _looking_at_answer(self.name):
                if isinstance(answer, Mapping):
                    if "score" not in answer:
                        raise _Failed(f"reward {self.name}: the dict it returned has no `score`")
                    answer = answer["score"]
        except _Failed as failed:
            return failed.failure
        return _checked(self.name, answer)


@contextmanager
def _looking_at_answer(name: str) -> Iterator[None]:
    try:
        with looking_at_answers(_Failed):
            yield
    except UserCodeError as error:
        raise _Failed(f"reward {name}: what it returned raised {error.reason}", error.trace) from error


def _trl_arguments(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.task.columns)
    columns = {name: [_own(rollout.task.columns.get(name)) for rollout in rollouts] for name in names}
    if all(rollout.task.messages is not None for rollout in rollouts):
        prompts: list[Any] = [_own(list(rollout.prompt_messages)) for rollout in rollouts]
        completions: list[Any] = [_own(list(rollout.messages)) for rollout in rollouts]
    else:
        prompts = [rollout.prompt for rollout in rollouts]
        completions = [rollout.completion for rollout in rollouts]
    world: dict[str, list[Any]] = {"states": [rollout.state for rollout in rollouts], "rollouts": list(rollouts)}
    return {**world, **columns, "prompts": prompts, "completions": completions}


def _own(value: Any) -> Any:
    """Lists and dicts of the function's own: what it does to them must reach neither other rollouts nor the tree file.

    >>> row = {"answer": ["Paris"]}
    >>> _own(row)["answer"].append("Paname")
    >>> row
    {'answer': ['Paris']}
    """
    if isinstance(value, Mapping):
        return {key: _own(part) for key, part in value.items()}
    return [_own(part) for part in value] if isinstance(value, list) else value


def _verl_arguments(rollout: Rollout) -> dict[str, Any]:
    return {
        "data_source": rollout.task.data_source,
        "solution_str": rollout.completion,
        "ground_truth": _own(rollout.task.ground_truth),
        "extra_info": _own(rollout.task.columns.get("extra_info") or {}),
        "state": rollout.state,
        "rollout": rollout,
        "states": [rollout.state],
        "rollouts": [rollout],
    }


VERL_ARGUMENTS = tuple(_verl_arguments(Rollout(Task(""), "", (), "", (), ())))


def _missing(name: str, function: Callable[..., Any], offered: Collection[str]) -> str | None:
    for parameter in _named(function):
        if parameter.default is parameter.empty and parameter.name not in offered:
            return f"reward {name}: needs {parameter.name!r}; {nearest(parameter.name, offered)}"
    return None


def _named(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Keep what the function takes."""
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        return offered
    return {p.name: offered[p.name] for p in _named(function) if p.name in offered}


async def _call(reward: TRLReward | VerlReward, offered: dict[str, Any]) -> Any:
    if problem := _missing(reward.name, reward.function, offered):
        raise _Failed(problem)
    arguments = _accepted(reward.function, offered)
    try:
        return await call(functools.partial(reward.function, **arguments), timeout_s=reward.timeout_s, urgent=False)
    except NoAnswerError as error:
        raise _Failed(f"reward {reward.name}: {error.reason} (reward.timeout_s)") from error
    except UserCodeError as error:
        raise _Failed(f"reward {reward.name}: raised {error.reason}", error.trace) from error


def _checked(name: str, value: Any) -> Reward:
    if value is None:
        return None
    try:
        reward = float(value)
    except (Exception, SystemExit):  # people's own objects may raise anything here
        return RewardFailure(f"reward {name}: must give numbers or None, got {_shown(value)}")
    if isinstance(value, str) or not math.isfinite(reward):
        return RewardFailure(f"reward {name}: must give finite numbers or None, got {_shown(value)}")
    return reward


def _shown(value: Any) -> str:
    """The value in at most 100 characters; its type where that is all that can be shown."""
    try:
        return one_line(repr(value), 100)
    except (Exception, SystemExit):
        return f"a {type(value).__name__}"
