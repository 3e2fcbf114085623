"""Prompts -> groups of finished trees: many trees at a time, each at its own pace.

Trees are started in the order of the prompts, no more than `rollout.max_live_trees` at once, so a
dataset of any length is read as it is needed. Groups come out as their last tree ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from treegrpo_cli.rollout.failures import Failure, PromptError
from treegrpo_cli.rollout.grove import Grove, groves_of, rewards_of
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.types import FLAT

logger = logging.getLogger(__name__)

TreeId = tuple[str, int]
"""(prompt_id, tree_id)."""

ABANDON_S = 5.0
"""How long a cancelled tree may take to end; user code can refuse to."""


@dataclass(frozen=True, slots=True)
class Grown:
    """A prompt whose last tree has ended: its trees by tree_id, and what failed on the way.

    A prompt that failed has no trees, and a failure of kind `prompt` or `reset`.
    """

    prompt: Prompt
    trees: list[Tree]
    failures: list[Failure]
    seconds: float = 0.0
    """From the start of its first tree to the end of its last."""
    num_rescues: int = 0
    """Expansions behind the last round, because the rewards until then were all equal."""

    @property
    def is_alive(self) -> bool:
        """Whether its rewards differ: a group in which all are equal, or none is, teaches nothing."""
        return differ(self.rewards)

    @property
    def rewards(self) -> list[float]:
        """Of its scored leaves, in the order of trees and of keys."""
        return rewards_of(self.trees)

    @property
    def failed(self) -> bool:
        """Whether nothing could grow from this prompt."""
        return any(failure.kind in ("prompt", "reset") for failure in self.failures)


def differ(rewards: Sequence[float]) -> bool:
    """Whether there is something to learn from a prompt with these rewards."""
    return bool(rewards) and max(rewards) - min(rewards) > FLAT


def ignore_tree(tree: Tree) -> None:
    """Do nothing with a finished tree: the default of `collect`."""


def collect(
    player: Player,
    prompts: Iterable[Prompt],
    num_trees: int,
    on_tree: Callable[[Tree], None] = ignore_tree,
    finished: Container[TreeId] = frozenset(),
) -> Groups:
    """Grow `num_trees` a prompt; iterate over the result, and `aclose()` it, to get them as `Grown`.

    `on_tree` sees every tree at once when it ends, also where its prompt then fails in another tree; trees
    in `finished` are not grown again, so a group may come short of them, and of no others. What fails
    outside of us is a `Failure` there. Anything else that a tree raises is an error: it ends all of them and
    is raised by the iterator, alone.
    """
    return Groups(player, prompts, num_trees, on_tree, finished)


@dataclass(slots=True)
class Group:
    """A prompt while its trees grow, in `num_left` groves."""

    prompt: Prompt
    num_left: int
    tasks: list[asyncio.Task[list[Tree]]] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    failure: Failure | None = None
    start: float | None = None
    """When its first tree was started."""

    def fail(self, error: PromptError) -> None:
        """Give the prompt up, and the trees that still grow from it."""
        if self.failure is None:
            self.failure = Failure(error.kind, self.prompt.prompt_id, error.reason, error.tree_id, error.trace)
            for task in self.tasks:
                task.cancel()

    def grown(self) -> Grown:
        """The result."""
        seconds = 0.0 if self.start is None else time.monotonic() - self.start
        if self.failure is not None:
            return Grown(self.prompt, [], [self.failure], seconds)
        trees = sorted(self.trees, key=lambda tree: tree.tree_id)
        failures = [failure for tree in trees for failure in tree.failures]
        return Grown(self.prompt, trees, failures, seconds)


class Groups(AsyncIterator[Grown]):
    """Groups of trees in the order in which they end.

    A class and no generator: it can be closed while somebody waits for its next group, more than once, and
    from a coroutine whose loop is gone.
    """

    def __init__(
        self,
        player: Player,
        prompts: Iterable[Prompt],
        num_trees: int,
        on_tree: Callable[[Tree], None],
        finished: Container[TreeId],
    ) -> None:
        self._player, self._prompts, self._num_trees = player, prompts, num_trees
        self._on_tree, self._finished = on_tree, finished
        self._live = player.live_trees or asyncio.Semaphore(player.config.rollout.max_live_trees)
        self._ended: asyncio.Queue[Grown | BaseException | None] = asyncio.Queue()
        self._starter: asyncio.Task[None] | None = None
        self._groves: set[asyncio.Task[list[Tree]]] = set()
        self._num_open = 0
        self._closed = False

    async def __anext__(self) -> Grown:
        """The next prompt whose last tree ends; raises what ended the rollout."""
        if self._closed:
            raise StopAsyncIteration
        if self._starter is None:
            await self._player.world.check()
            self._starter = asyncio.create_task(self._start_all())
        item = await self._ended.get()
        if isinstance(item, Grown):
            return item
        await self.aclose()
        raise StopAsyncIteration if item is None else item

    async def aclose(self) -> None:
        """Abandon the trees that still grow. Never raises for them, and waits no longer than `ABANDON_S`."""
        self._closed = True
        running: set[asyncio.Task[None] | asyncio.Task[list[Tree]]] = {*self._groves}
        if self._starter is not None and not self._starter.done():
            running.add(self._starter)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # closed by the garbage collector, or behind a loop that was torn down with its tasks
        for task in running:
            task.cancel()
        if running:
            _, stuck = await asyncio.wait(running, timeout=ABANDON_S)
            if stuck:
                logger.warning("%d trees did not end within %g s and are left behind", len(stuck), ABANDON_S)

    async def _start_all(self) -> None:
        """Start the trees as there is room for them."""
        self._num_open = 1  # this task itself: a group that ends while others are to come is not the last
        try:
            for prompt in self._prompts:
                tree_ids = [i for i in range(self._num_trees) if (prompt.prompt_id, i) not in self._finished]
                groves = groves_of(self._player, prompt, tree_ids)
                group = Group(prompt, len(groves))
                self._num_open += 1
                for grove in groves:
                    for _ in range(self._room_of(grove)):
                        await self._live.acquire()
                    self._start(group, grove)
                if not groves:
                    self._end(group)
        except Exception as error:  # the reader of the groups raises it
            self._ended.put_nowait(error)
        self._close_one()

    def _room_of(self, grove: Grove) -> int:
        """Live trees that it counts for; one with more than there may be grows alone."""
        return min(len(grove.trees), self._player.config.rollout.max_live_trees)

    def _start(self, group: Group, grove: Grove) -> None:
        group.start = group.start or time.monotonic()
        task = asyncio.create_task(grove.run())
        self._groves.add(task)
        group.tasks.append(task)
        task.add_done_callback(partial(self._take, group, grove))
        if group.failure is not None:
            task.cancel()

    def _take(self, group: Group, grove: Grove, task: asyncio.Task[list[Tree]]) -> None:
        """Take a grove that ended, however it did."""
        for _ in range(self._room_of(grove)):
            self._live.release()
        self._groves.discard(task)
        error = None if task.cancelled() else task.exception()
        if self._closed:
            return
        try:
            self._add(group, task, error)
            group.num_left -= 1
            if not group.num_left:
                self._end(group)
        except BaseException as raised:  # the reader of the groups raises it
            self._ended.put_nowait(raised)

    def _add(self, group: Group, task: asyncio.Task[list[Tree]], error: BaseException | None) -> None:
        if isinstance(error, PromptError):
            group.fail(error)
        elif error is not None:
            raise error
        elif not task.cancelled():
            for tree in task.result():
                group.trees.append(tree)
                self._on_tree(tree)
        elif group.failure is None:
            raise RuntimeError(f"prompt {group.prompt.prompt_id}: its trees were cancelled by what they ran")

    def _end(self, group: Group) -> None:
        self._ended.put_nowait(group.grown())
        self._close_one()

    def _close_one(self) -> None:
        self._num_open -= 1
        if not self._num_open:
            self._ended.put_nowait(None)
