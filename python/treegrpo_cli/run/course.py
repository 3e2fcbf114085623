"""A run's steps, one behind the other: each grows, trains and is evaluated while nothing else goes on.

`overlap.py` is the other course, where trees of later steps grow meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from treegrpo_cli.rollout.step import do_nothing, grow_step
from treegrpo_cli.run.failures import FailureCount

if TYPE_CHECKING:
    from treegrpo_cli.rollout.collect import Grown
    from treegrpo_cli.rollout.disagreement import RewardsSoFar
    from treegrpo_cli.rollout.failures import Failure
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.rollout.timings import Timings
    from treegrpo_cli.rollout.tree import Prompt
    from treegrpo_cli.run.stopping import StopRequest

T = TypeVar("T")
NameFailures = Callable[[list["Failure"]], None]


class StepGrowth:
    """The groups of one step, while they grow and afterwards: in the order of their prompts, with what failed."""

    def __init__(self, player: Player, name_failures: NameFailures) -> None:
        self.groups: list[Grown] = []
        self.failures = FailureCount(player.config)
        self.seconds = 0.0
        """From its start to its end, whatever else went on."""
        self._player, self._name_failures = player, name_failures

    async def run(self, prompts: Iterator[Prompt], on_all_started: Callable[[], None] = do_nothing) -> None:
        """Grow them to their end."""
        start = monotonic()
        self.groups = await grow_step(self._player, prompts, self._look, on_all_started)
        self.seconds = monotonic() - start

    def _look(self, grown: Grown) -> None:
        self.failures.add(grown)
        self._name_failures(grown.failures)


class Course:
    """Growing, training and evaluating in turns: every tree is of the weights that train on it."""

    def __init__(
        self,
        player: Player,
        runner: asyncio.Runner,
        stop: StopRequest,
        name_failures: NameFailures,
        rewards_so_far: Callable[[], RewardsSoFar],
    ) -> None:
        self.player, self.runner, self.stop = player, runner, stop
        self._name_failures, self._rewards_so_far = name_failures, rewards_so_far

    def grow(self, prompts: Iterator[Prompt]) -> StepGrowth:
        """Return the step's groups, grown from the first of `prompts`. Raises Stopped where a signal came."""
        self.player.rewards_so_far = self._rewards_so_far()
        self.player.take_timings()  # the engine's of an evaluation, and what it had cached
        self.player.sampler.prefix_cache_hit_ratio()
        growth = StepGrowth(self.player, self._name_failures)
        self.run(growth.run(prompts))
        return growth

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, or raise Stopped where a signal came meanwhile."""
        return self.stop.run(self.runner, work)

    def beside(self, work: Callable[[], T]) -> T:
        """Do what blocks, an update say; a signal waits for its end."""
        return work()

    def sleep(self) -> None:
        """Let the engine give its memory back until it gets weights."""
        self.player.sampler.sleep()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Nothing is sampled while the engine gets new weights in the body."""
        yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The engine is the body's alone, and what it does there is not the rollout's."""
        yield

    def check(self) -> None:
        """Raise what has ended trees that nobody waits for yet."""

    def take_timings(self, rollout_s: float) -> tuple[Timings, float]:
        """Where the step's time went so far, and the seconds in which trees could grow; `rollout_s` was waited."""
        return self.player.take_timings(), rollout_s

    def close(self) -> None:
        """Give up what still grows."""
