"""n replicas -> one sampler: who serves what, and what happens when one is gone.

What is sampled never depends on it: a request carries its seed, and another replica samples the same from it (float32).
There is no Ray and no HTTP in here: a replica is whatever `samplers.replicas.Replica` describes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from treegrpo_cli.errors import said
from treegrpo_cli.samplers.base import EngineCounts
from treegrpo_cli.samplers.placing import Placing
from treegrpo_cli.samplers.replicas import NoReplicaError, Replica, ReplicaGoneError, Update
from treegrpo_cli.samplers.returning import Seat
from treegrpo_cli.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    import torch

    from treegrpo_cli.models.weights import Adapter

__all__ = ["NoReplicaError", "Replica", "ReplicaGoneError", "RoutedSampler", "Update"]

logger = logging.getLogger(__name__)

RETURN_S = 600.0
"""Seconds that requests wait for a replica when none is left."""
LOOK_S = 0.05
"""Seconds between two looks for one that is back."""
MAX_TRIES = 5
"""Replicas that one request may see die before it is the one to blame."""

Answer = TypeVar("Answer")


class RoutedSampler:
    """A `Sampler` over replicas: routing by `samplers.placing`, requests sampled again where a replica is gone.

    `publish` turns weights or an adapter, and their version, into what replicas take. Where training hands over
    something published already, it calls `hand_over` itself.
    """

    def __init__(
        self,
        name: str,
        replicas: Sequence[Replica],
        publish: Callable[[Iterable[tuple[str, torch.Tensor]] | Adapter, int], Update],
        *,
        say: Callable[[str], None] = logger.warning,
        return_s: float = RETURN_S,
    ) -> None:
        self.name, self.policy_version = name, 0
        self.max_model_len = min(replica.max_model_len for replica in replicas)
        self._publish, self._return_s = publish, return_s
        self._keeps_prefixes = all(replica.keeps_prefixes for replica in replicas)
        self._placing = Placing(len(replicas), keeps_prefixes=self._keeps_prefixes)
        self._sending = Lock()
        self._update: Update | None = None
        self._seats = [Seat(replica, self._sending, lambda: self._update, say) for replica in replicas]
        self._num_running = self._prompt_tokens = self._cached_tokens = 0

    @property
    def takes_adapter(self) -> bool:
        """Whether every replica computes the model as it is stored and an adapter beside it."""
        return all(seat.replica.takes_adapter for seat in self._seats)

    @property
    def live(self) -> list[Replica]:
        """The replicas that serve now."""
        return [seat.replica for seat in self._seats if seat.is_live]

    @property
    def num_returns(self) -> int:
        """How often a replica came back so far."""
        return sum(seat.num_returns for seat in self._seats)

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """Sample one turn behind `context`; on another replica, from the same seed, where one is gone.

        Raises NoReplicaError where none is left, and what a replica says of this request alone.
        """
        for _ in range(MAX_TRIES):
            live = await self._live_places()
            placed = self._placing.place(params.prefix_key, len(context), params.max_tokens, live)
            seat = self._seats[placed.replica]
            spell = seat.num_returns
            self._num_running += 1
            try:
                completion = await seat.replica.sample(context, params, seed)
            except ReplicaGoneError as error:
                self._lose(placed.replica, spell, error)
                continue
            finally:
                self._num_running -= 1
                self._placing.end(placed)
            self._prompt_tokens += len(context)
            self._cached_tokens += completion.num_cached_tokens
            return completion
        raise NoReplicaError(f"{MAX_TRIES} engines were gone while they sampled the same turn: {seat.reason}")

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        """Send a whole `state_dict()`'s items to every live replica; one that is away gets them when it returns."""
        self._hand_over(lambda: self._publish(weights, policy_version))

    def update_adapter(self, adapter: Adapter, policy_version: int) -> None:
        """Send a new adapter to every live replica; one that is away gets it when it returns."""
        self._hand_over(lambda: self._publish(adapter, policy_version))

    def hand_over(self, update: Update) -> None:
        """Let every live replica take what is published already; what is away takes it when it returns.

        Raises RuntimeError while requests run.
        """
        self._hand_over(lambda: update)

    def sleep(self) -> None:
        """Let every replica give its memory back until the next update."""
        self._settle()
        self._each(lambda replica: replica.sleep())

    def prefix_cache_hit_ratio(self) -> float | None:
        """Cached over all prompt tokens of all replicas since the last call; None without any, or without caches."""
        known = self._prompt_tokens and self._keeps_prefixes
        ratio = self._cached_tokens / self._prompt_tokens if known else None
        self._prompt_tokens = self._cached_tokens = 0
        return ratio

    def take_counts(self) -> EngineCounts:
        """Return what all replicas did since the last call; of one that died, what it did is not known.

        Steps and tokens are sums, seconds the mean over all replicas, so that they are a share of the wall time.
        """
        found = self._each(lambda replica: replica.take_counts())
        return EngineCounts(
            step_s=sum(counts.step_s for counts in found) / len(self._seats),
            num_steps=sum(counts.num_steps for counts in found),
            generated_tokens=sum(counts.generated_tokens for counts in found),
        )

    def close(self) -> None:
        """End every replica."""
        for seat in self._seats:
            seat.close()

    def _hand_over(self, publish: Callable[[], Update]) -> None:
        """Publish and send, while no replica returns; whatever but a replica's end ends all of them."""
        self._settle()
        with self._sending:
            self._update = None  # so that old and new are not held together
            self._placing.forget()
            try:
                self._update = publish()
                self._each(lambda replica: replica.take(self._update))
            except BaseException:
                self.close()
                raise
            self.policy_version = self._update.policy_version
            for seat in self._seats:
                seat.catch_up(self._update)

    def _settle(self) -> None:
        if self._num_running:
            raise RuntimeError(f"{self._num_running} requests are still running: update weights between rollouts")

    def _each(self, ask: Callable[[Replica], Answer]) -> list[Answer]:
        """Ask every live replica at the same time; one that is gone is left out."""
        seats = [(place, seat, seat.num_returns) for place, seat in enumerate(self._seats) if seat.is_live]
        answers: list[Answer] = []
        with ThreadPoolExecutor(max(len(seats), 1)) as pool:
            asked = [pool.submit(ask, seat.replica) for _, seat, _ in seats]
            for (place, _, spell), answer in zip(seats, asked, strict=True):
                try:
                    answers.append(answer.result())
                except ReplicaGoneError as error:
                    self._lose(place, spell, error)
        return answers

    def _lose(self, place: int, spell: int, error: ReplicaGoneError) -> None:
        """Take a replica out, unless it has come back since it was asked."""
        if self._seats[place].leave(spell, said(error)):
            self._placing.forget(place)

    async def _live_places(self) -> list[int]:
        """Return the places of the replicas that serve; wait for one where there is none.

        Raises NoReplicaError where all are given up, or none is back within the limit.
        """
        deadline = time.monotonic() + self._return_s
        while not (live := [place for place, seat in enumerate(self._seats) if seat.is_live]):
            reasons = "; ".join(f"{seat.replica.name}: {seat.reason}" for seat in self._seats)
            if all(seat.is_lost for seat in self._seats):
                raise NoReplicaError(f"no engine is left ({reasons})")
            if time.monotonic() > deadline:
                raise NoReplicaError(f"no engine came back within {self._return_s:g} s ({reasons})")
            await asyncio.sleep(LOOK_S)
        return live
