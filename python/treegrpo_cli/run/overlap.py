"""A run's steps side by side: trees of later steps grow while this one trains, and go on under new weights.

Steps stay what they are: the prompts of step k are those behind the prompts of step k - 1, and its trees are trained on
together, when all have ended. With staleness s, and steps counted from 1,

    the trees of step k may begin as soon as the engine has the weights behind step k - 1 - s

so that no token that step k trains on is older than s steps, whatever took how long. At most s + 1 steps grow at the
same time, and `rollout.max_live_trees` bounds their trees together: a step's first tree is started behind the last one
of the step before. Where only the end of trees says what follows (fresh prompts for dead ones, expansions dealt across
prompts, lock-step), a step begins when the one before it has ended.

New weights come between two turns (`rollout/gate.py`); an evaluation holds what grows in the same way, and has the
engine for itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from treegrpo_cli.free_time import busy
from treegrpo_cli.rollout.collect import ABANDON_S
from treegrpo_cli.rollout.gate import Gate
from treegrpo_cli.rollout.step import do_nothing
from treegrpo_cli.run.course import Course, NameFailures, StepGrowth, T
from treegrpo_cli.samplers.step_thread import StepThread

if TYPE_CHECKING:
    from treegrpo_cli.rollout.disagreement import RewardsSoFar
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.rollout.timings import Timings
    from treegrpo_cli.rollout.tree import Prompt
    from treegrpo_cli.run.stopping import StopRequest


class Overlap(Course):
    """A course on which up to `scale.max_staleness` steps grow beside the one that is waited for, or trains.

    `num_trained`: the steps behind the run when it begins. Updates, checkpoints and tree files are made in a thread;
    while the main thread scores, or hands weights over, nothing grows. What goes wrong in a later step is raised as
    soon as the main thread waits for trees, or has written the step that trained meanwhile.
    """

    def __init__(
        self,
        player: Player,
        runner: asyncio.Runner,
        stop: StopRequest,
        name_failures: NameFailures,
        rewards_so_far: Callable[[], RewardsSoFar],
        num_trained: int,
    ) -> None:
        super().__init__(player, runner, stop, name_failures, rewards_so_far)
        config = player.config
        self.gate = player.gate = Gate(player.sampler)
        self._staleness, self._num_steps = config.scale.max_staleness, config.train.num_steps
        self._live_trees = asyncio.Semaphore(config.rollout.max_live_trees)
        waits = config.prompts_wait or config.rollout.schedule == "lock-step"
        self._waits_for_ends = waits or config.advantage.dead_prompts == "refill"
        self._prompts: Iterator[Prompt] | None = None
        self._growing: deque[tuple[StepGrowth, asyncio.Task[None]]] = deque()
        self._last: asyncio.Task[None] | None = None
        self._num_begun, self._has_room, self._is_closed = num_trained, True, False
        self._changed = asyncio.Event()
        self._thread: StepThread[Any] | None = None
        self._work: Callable[[], Any] = do_nothing
        self._since = monotonic()
        self._paused = ExitStack()
        """Open while the loop stands still: what tools are allowed is not used up."""

    def grow(self, prompts: Iterator[Prompt]) -> StepGrowth:
        """Return the next step's groups when all have grown. Raises Stopped, or what ended trees of any step.

        Prompts are drawn from the first iterator that is given: later ones begin where it stands, or further behind.
        """
        self._prompts = self._prompts or prompts
        return self.run(self._next())

    async def _next(self) -> StepGrowth:
        self.stop.check()  # a signal that came just now has kept steps from beginning
        growth, task = self._growing[0]
        while not task.done():
            self.check()
            self._changed.clear()
            await self._changed.wait()
        task.result()
        self._growing.popleft()
        return growth

    def check(self) -> None:
        """Raise what has ended the trees of a step that grows."""
        for _, task in self._growing:
            if task.done() and not task.cancelled():
                task.result()

    def _begin_steps(self) -> None:
        """Begin the steps whose time has come; called in the loop wherever it may have."""
        while self._may_begin():
            self._num_begun += 1
            self._has_room = False
            growth = StepGrowth(self.player.of_step(self._rewards_so_far(), self._live_trees), self._name_failures)
            assert self._prompts is not None
            on_all_started = do_nothing if self._waits_for_ends else self._on_all_started
            self._last = task = asyncio.get_running_loop().create_task(growth.run(self._prompts, on_all_started))
            task.add_done_callback(self._on_end)
            self.stop.abandons(task)
            self._growing.append((growth, task))

    def _may_begin(self) -> bool:
        number = self._num_begun + 1
        is_due = number <= self._num_steps and number - 1 - self._staleness <= self.player.sampler.policy_version
        is_over = self._is_closed or self._prompts is None or self.stop.signal_number or self._has_failed
        return is_due and self._has_room and not is_over

    @property
    def _has_failed(self) -> bool:
        return any(task.done() and (task.cancelled() or task.exception()) for _, task in self._growing)

    def _on_all_started(self) -> None:
        self._has_room = True
        asyncio.get_running_loop().call_soon(self._begin_steps)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._has_room = self._has_room or task is self._last
        if not task.cancelled():
            task.exception()  # seen: it is raised where trees are waited for
        self._changed.set()
        self._begin_steps()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end while trees grow, or raise Stopped where a signal came meanwhile."""
        try:
            with self._turning():
                return self.stop.run(self.runner, self._among_trees(work))
        finally:
            work.close()

    def beside(self, work: Callable[[], T]) -> T:
        """Do what blocks in a thread, while trees grow; a signal gives the trees up, and waits for the end of this."""
        self._thread = self._thread or StepThread("treegrpo-trainer", lambda: self._work())
        self._work = work
        try:
            with self._turning():
                result: T = self.runner.run(self._among_trees(self._thread.call()))
                return result
        finally:
            self._thread.join()  # whatever interrupts us: nobody saves weights while they move

    async def _among_trees(self, work: Coroutine[Any, Any, T]) -> T:
        self._begin_steps()
        return await work

    @contextmanager
    def _turning(self) -> Iterator[None]:
        self._paused.close()
        try:
            yield
        finally:
            self._paused.enter_context(busy())

    def sleep(self) -> None:
        """The engine stays awake: trees grow."""

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Hold the trees between two turns.

        An engine that died fails here first: what it did to the trees is raised where they are waited for, behind the
        step that was trained.
        """
        with self._held():
            try:
                yield
            except Exception:
                if not self._has_failed:
                    raise

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the trees between two turns; what the engine counts meanwhile is not theirs."""
        start, sampler = monotonic(), self.player.sampler
        with self._held():
            try:
                yield
            finally:
                sampler.take_counts()
                sampler.prefix_cache_hit_ratio()
                self._since += monotonic() - start

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._turning():
            self.runner.run(self.gate.close())
        try:
            yield
        finally:
            self.gate.open()

    def take_timings(self, rollout_s: float) -> tuple[Timings, float]:
        """Where the time went since the last call, and all of it: trees could grow in every second."""
        since, self._since = self._since, monotonic()
        return self.player.take_timings(), self._since - since

    def close(self) -> None:
        """Give up the trees that still grow; they count nowhere."""
        self._is_closed = True
        tasks = [task for _, task in self._growing if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            with self._turning():
                self.runner.run(_end_of(tasks))
        self._paused.close()
        if self._thread is not None:
            self._thread.end()


async def _end_of(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for cancelled tasks, as long as they may take."""
    await asyncio.wait(tasks, timeout=2 * ABANDON_S)
