"""Replicas that sample a pure function of context, seed and weights, and die when a test says so."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

from treegrpo_cli.samplers.base import EngineCounts
from treegrpo_cli.samplers.routing import ReplicaGoneError
from treegrpo_cli.types import Completion, SamplingParams, TokenIds


@dataclass(frozen=True)
class FakeUpdate:
    """Weights that are one number."""

    weights: float
    policy_version: int
    lasts: bool = True


def publish(weights: float, policy_version: int) -> FakeUpdate:
    return FakeUpdate(weights, policy_version)


@dataclass
class FakeReplica:
    """`gate` holds its turns back, `may_return` its revival; `num_lives` is how often it can be revived."""

    name: str = "engine 0"
    max_model_len: int = 512
    keeps_prefixes: bool = True
    takes_adapter: bool = False
    num_lives: int = 100
    delay_s: Callable[[], float] = lambda: 0.0
    is_dead: bool = False
    weights: float = 0.0
    version: int = 0
    served: list[tuple[int, int]] = field(default_factory=list)
    """(prefix_key, policy_version) of each request that began."""
    taken: list[int] = field(default_factory=list)
    num_cancelled: int = 0
    num_running: int = 0
    is_asleep: bool = False
    is_closed: bool = False
    may_return: Event = field(default_factory=Event)
    returned_version: int | None = None
    dies_at_take: bool = False

    def __post_init__(self) -> None:
        self.may_return.set()

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        self._check()
        self.served.append((params.prefix_key, self.version))
        version, self.num_running = self.version, self.num_running + 1
        try:
            await asyncio.sleep(self.delay_s())
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        self._check()
        draw = random.Random(hash((tuple(context), seed, self.weights)))
        ids = [draw.randrange(100) for _ in range(draw.randint(1, params.max_tokens))]
        return Completion(ids, [0.0] * len(ids), "", "stop", version, num_cached_tokens=len(context) // 2)

    def take(self, update: FakeUpdate) -> None:
        self._check()
        if self.dies_at_take:
            self.dies_at_take, self.is_dead = False, True
            self._check()
        self.weights, self.version = update.weights, update.policy_version
        self.taken.append(update.policy_version)

    def revive(self) -> int | None:
        self.may_return.wait()
        self.num_lives -= 1
        if self.num_lives < 0 or self.is_closed:
            raise ReplicaGoneError("it was started too often")
        self.is_dead, self.weights, self.version = False, 0.0, 0
        return self.returned_version

    def sleep(self) -> None:
        self._check()
        self.is_asleep = True

    def take_counts(self) -> EngineCounts:
        self._check()
        return EngineCounts(1.5, 2, 3)

    def close(self) -> None:
        self.is_closed = True
        self.may_return.set()

    def _check(self) -> None:
        if self.is_dead:
            raise ReplicaGoneError("killed")
