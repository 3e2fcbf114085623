"""Trainer ranks as Ray actors -> all asked at once, one answer, and an error for each way to fail.

A rank that is gone leaves the others waiting in an exchange that will never end: nothing can be asked of them any
more, and they are killed. One that lives and hangs is the one that still does not answer when the others have given up
an exchange with it, behind `TIMEOUT_S`: it counts as gone, too. Nobody waits in one long call: the driver stays able to
notice a signal.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.scale.cluster import actor_options, environment, unwrapped
from treegrpo_cli.scale.rank_actor import PathRefusedError, Rank
from treegrpo_cli.train.ranks import TIMEOUT_S
from treegrpo_cli.train.together import ElsewhereError

if TYPE_CHECKING:
    from treegrpo_cli.config import Config

SLICE_S = 0.2
"""How long the driver waits before it looks up."""

GRACE_S = 10.0
"""How long others may take to answer where one has raised: what it raised may follow from the end of another."""

Options = Callable[[int], dict[str, Any]]
"""A rank's number -> where its actor is placed, as `cluster.actor_options` takes it."""


class RankDiedError(Exception):
    """A rank is gone; the message says which, in one line."""


class RankActors:
    """The actors of all ranks, started and asked together."""

    def __init__(self, config: Config, tokenizer: Any, options: Options, log_dir: Path | None) -> None:
        import ray

        size, here = config.scale.trainer_ranks, environment()
        actor = ray.remote(Rank)
        self.is_usable = True
        self._actors: list[Any] = []
        for number in range(size):
            log_path = None if log_dir is None else log_dir / f"rank-{number}.log"
            started = actor.options(**actor_options(**options(number), max_concurrency=1))
            self._actors.append(started.remote(number, size, here, log_path))
        try:
            place = self._answers([self._actors[0].meeting_place.remote()])[0]
            self.ask("open", place, turns(self.ask_each("node")), config, tokenizer)
        except BaseException:
            self.kill()
            raise

    def ask(self, method: str, *args: Any) -> Any:
        """Ask all ranks; return rank 0's answer once all have answered. Errors as of `ask_each`."""
        return self.ask_each(method, *args)[0]

    def ask_each(self, method: str, *args: Any) -> list[Any]:
        """Ask all ranks; return their answers.

        Raises RankDiedError, PathRefusedError, and what a rank raised. They are not `is_usable` behind an error
        that left some of them waiting.
        """
        return self._answers([getattr(actor, method).remote(*args) for actor in self._actors])

    def next_chunk(self) -> Any:
        """Let all gather the next weights; return the reference to rank 0's chunk of them, None at the end.

        The reference is the driver's: what it refers to outlives rank 0.
        """
        is_there, chunk = self._actors[0].next_chunk.options(num_returns=2).remote()
        others = [actor.next_chunk.options(num_returns=2).remote()[0] for actor in self._actors[1:]]
        return chunk if self._answers([is_there, *others])[0] else None

    def take_lines(self) -> list[str]:
        """What rank 0 said since the last call."""
        lines: list[str] = self._answers([self._actors[0].take_lines.remote()])[0]
        return lines

    def kill(self) -> None:
        """End all of them at once."""
        import ray

        self.is_usable = False
        for actor in self._actors:
            ray.kill(actor)

    def _answers(self, refs: list[Any]) -> list[Any]:
        waiting = {ref: rank for rank, ref in enumerate(refs)}
        answers: dict[int, Any] = {}
        failures: dict[int, BaseException] = {}
        begun, deadline = time.monotonic(), float("inf")
        try:
            while waiting and time.monotonic() < deadline:
                _take_answers(waiting, answers, failures)
                if failures:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        finally:
            self.is_usable = self.is_usable and not waiting
        if failures:
            error = most_telling(failures)
            is_said = isinstance(error, UserError | PathRefusedError | RankDiedError)
            if waiting and not is_said and time.monotonic() - begun > TIMEOUT_S:
                raise RankDiedError(f"trainer rank {min(waiting.values())} hangs") from error
            raise error
        return [answers[rank] for rank in range(len(refs))]


def _take_answers(waiting: dict[Any, int], answers: dict[int, Any], failures: dict[int, BaseException]) -> None:
    """Wait a little for one answer more. Raises RankDiedError."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    done, _ = ray.wait(list(waiting), num_returns=1, timeout=SLICE_S)
    for ref in done:
        rank = waiting[ref]
        try:
            answers[rank] = ray.get(ref)
        except RayTaskError as error:
            failures[rank] = unwrapped(error)
        except RayError as error:
            raise RankDiedError(f"trainer rank {rank} has died") from error
        del waiting[ref]


def most_telling(failures: dict[int, BaseException]) -> BaseException:
    """Return the error of several that says what happened.

    >>> most_telling({0: ElsewhereError("x", "another"), 1: UserError("no space left")})
    UserError('no space left')
    """
    from torch.distributed import DistError

    refusals = {name: found for error in failures.values() for name, found in _refused(error)}
    if refusals:
        return PathRefusedError(refusals)
    said = [error for error in failures.values() if isinstance(error, UserError)]
    ours = [error for error in failures.values() if not isinstance(error, DistError | UserError)]
    lost = [rank for rank, error in failures.items() if isinstance(error, DistError)]
    own = [error for error in said if not isinstance(error, ElsewhereError)]
    if own or said:
        return (own or said)[0]
    return ours[0] if ours else RankDiedError(f"trainer rank {lost[0]} lost the others")


def _refused(error: BaseException) -> list[tuple[str, Any]]:
    return list(error.refusals.items()) if isinstance(error, PathRefusedError) else []


def turns(nodes: list[str]) -> list[tuple[int, int]]:
    """Return each rank's place among the ranks of its machine, and how many those are.

    >>> turns(["a", "a", "b"])
    [(0, 2), (1, 2), (0, 1)]
    """
    total, seen = Counter(nodes), Counter[str]()
    found = []
    for node in nodes:
        found.append((seen[node], total[node]))
        seen[node] += 1
    return found
