"""`scale.engines` -> so many engines, each a Ray actor, behind one sampler."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from treegrpo_cli.errors import UserError, said
from treegrpo_cli.samplers.base import EngineCounts, Trained
from treegrpo_cli.samplers.routing import ReplicaGoneError, RoutedSampler
from treegrpo_cli.samplers.stepping import EngineError
from treegrpo_cli.scale.card_update import CardUpdate
from treegrpo_cli.scale.cluster import actor_options, environment, unwrapped
from treegrpo_cli.scale.engine_actor import EngineActor, EngineFacts, EngineSettings
from treegrpo_cli.scale.turn_calls import TurnCalls
from treegrpo_cli.scale.watch import Watch, hang_s
from treegrpo_cli.scale.weights import Published, publish
from treegrpo_cli.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.scale.placement import Placement

MAX_RESTARTS = 5
"""Of one engine, none of which lived for `LONG_LIFE_S`."""
LONG_LIFE_S = 3600.0
FIRST_PAUSE_S = 1.0
"""Before a dead engine is started again; twice as long before each further time."""
PATIENCE_S = 300.0
"""A start that takes longer is mentioned: Ray waits for resources without a word."""
LOOK_S = 0.2


def open_engines(
    config: Config, placement: Placement, log_path: Path | None, say: Callable[[str], None], trained: Trained | None
) -> RayEngines:
    """Start the engines side by side, each in its place. Raises UserError where one of them says so."""
    scale = config.scale
    settings = EngineSettings(
        environment(),
        config.sampler,
        path_everywhere(config.model.path),
        config.model.dtype,
        placement.device,
        config.rollout.context_tokens,
        config.seed,
        log_path,
        trained,
        scale.tensor_parallel,
    )
    say(f"starting {count_of(scale.engines)} ...")
    replicas = [
        EngineReplica(number, replace(settings, log_path=log_of(log_path, number)), placement.engine(number), say)
        for number in range(scale.engines)
    ]
    try:
        for replica in replicas:
            replica.wait_for_start()
    except BaseException as error:
        for replica in replicas:
            replica.close()
        if isinstance(error, ReplicaGoneError):
            raise UserError(f"an engine ended while it started: {error}; its log is beside {log_path}") from error
        raise
    for line in dict.fromkeys(line for replica in replicas for line in replica.facts.said):
        say(line)
    name = replicas[0].facts.name
    return RayEngines(f"{count_of(len(replicas))} ({name})", replicas, publish, say=say)


def count_of(engines: int) -> str:
    """So many engines.

    >>> count_of(1), count_of(2)
    ('1 engine', '2 engines')
    """
    return "1 engine" if engines == 1 else f"{engines} engines"


def path_everywhere(model_path: str) -> str:
    """Return a folder's path from the root on, whatever folder an actor starts in; a name on the Hub as it is."""
    return os.path.abspath(model_path) if os.path.isdir(model_path) else model_path


def log_of(path: Path | None, number: int) -> Path | None:
    """Return the log of one engine: `engine-0.log` beside `engine.log`; nobody's log is nobody's."""
    if path is None or path == Path(os.devnull):
        return path
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


class RayEngines(RoutedSampler):
    """The sampler over engines that are Ray actors."""

    @property
    def actors(self) -> list[Any]:
        """Those of the engines that serve now."""
        return [replica.actor for replica in self.live if isinstance(replica, EngineReplica)]


class EngineReplica:
    """A `samplers.replicas.Replica`: the driver's end of one engine, and how it is started again."""

    facts: EngineFacts

    def __init__(
        self, number: int, settings: EngineSettings, options: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self.name = f"engine {number}"
        self._settings, self._options, self._say = settings, options, say
        self._loops = count()
        self._calls: TurnCalls | None = None
        self._num_restarts, self._started = 0, time.monotonic()
        self._closed = Event()
        self._watch: Watch | None = None
        self._hung: Any = None
        self._start()

    @property
    def actor(self) -> Any:
        """Its process, as Ray names it."""
        return self._actor

    @property
    def max_model_len(self) -> int:
        """Longest context plus turn, in tokens."""
        return self.facts.max_model_len

    @property
    def keeps_prefixes(self) -> bool:
        """Whether the engine caches prefixes."""
        return self.facts.keeps_prefixes

    @property
    def takes_adapter(self) -> bool:
        """Whether the engine keeps adapters beside its weights."""
        return self.facts.takes_adapter

    def wait_for_start(self) -> None:
        """Block until the engine has started. Raises UserError as it does, ReplicaGoneError where it died."""
        asked = time.monotonic()
        while not ray.wait([self._starting], timeout=LOOK_S)[0]:
            if self._closed.is_set():
                raise ReplicaGoneError("closed")
            if time.monotonic() - asked > PATIENCE_S:
                self._say(f"{self.name} has not started for {PATIENCE_S:g} s: the cluster may have no room for it yet")
                asked = float("inf")
        self.facts = self._ask(lambda: ray.get(self._starting))
        self._started = time.monotonic()
        self._watch = Watch(self._actor, hang_s(self._settings.device), self._on_hang)

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """Sample one turn in the engine's process; who is cancelled drops it there."""
        calls = self._calls
        if calls is None or not calls.are_for(self._actor):
            calls = self._calls = TurnCalls(self._actor, next(self._loops))
        try:
            return await calls.sample(np.asarray(context, dtype=np.uint32), params, seed)
        except RayError as error:
            raise self._translated(error) from error
        except EngineError as error:
            raise ReplicaGoneError(said(error)) from error

    def take(self, update: Published | CardUpdate) -> None:
        """Load what is published, chunk by chunk, or what comes from card to card."""
        self._ask(lambda: update.send_to(self._actor))

    def revive(self) -> None:
        """Start the engine again, behind a pause that grows. Raises ReplicaGoneError where it died too often."""
        if time.monotonic() - self._started > LONG_LIFE_S:
            self._num_restarts = 0
        self._kill()
        self._end_watch()
        if self._num_restarts == MAX_RESTARTS:
            raise ReplicaGoneError(f"it died {MAX_RESTARTS + 1} times; its log is {self._settings.log_path}")
        if self._closed.wait(FIRST_PAUSE_S * 2**self._num_restarts):
            raise ReplicaGoneError("closed")
        self._num_restarts += 1
        self._say(f"{self.name} is started again ({self._num_restarts} of at most {MAX_RESTARTS} times)")
        self._start()
        self.wait_for_start()

    def sleep(self) -> None:
        """Give the engine's memory back until the next update."""
        self._ask(lambda: ray.get(self._actor.sleep.remote()))

    def take_counts(self) -> EngineCounts:
        """What the engine did since the last call."""
        counts: EngineCounts = self._ask(lambda: ray.get(self._actor.take_counts.remote()))
        return counts

    def close(self) -> None:
        """End the engine's process."""
        self._closed.set()
        self._kill()
        self._end_watch()

    def _start(self) -> None:
        self._actor = ray.remote(**actor_options(**self._options))(EngineActor).remote()
        self._starting = self._actor.start.remote(self._settings)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()

    def _on_hang(self) -> None:
        """Kill the engine: who waits for it is told, and it is started again."""
        self._hung = self._actor
        self._kill()

    def _kill(self) -> None:
        if ray.is_initialized():
            ray.kill(self._actor)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RayError as error:
            raise self._translated(error) from error

    def _translated(self, error: RayError) -> BaseException:
        """Return what an error of Ray means: the engine's own word, or that the engine is gone."""
        cause = unwrapped(error)
        if isinstance(cause, EngineError):
            return ReplicaGoneError(said(cause))
        if isinstance(error, RayTaskError):
            return cause
        if isinstance(error, ActorDiedError):
            return ReplicaGoneError("it hung" if self._hung is self._actor else "its process died")
        return ReplicaGoneError(f"{type(error).__name__}: {said(error)}")
