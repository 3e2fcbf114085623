"""A request's prompt + what every replica has to do -> the replica that serves it.

A prompt keeps to the replica where it was first read, whose cache begins like it; a new one goes to the replica with
the fewest tokens left to decode. One that has much more to do than the others gives way to the next by consistent
hashing, so that what a prompt spills over goes to one replica, too.

Source: consistent hashing with bounded loads (Mirrokni and others, arXiv 1608.01350): no bin gets more while
it holds a constant times the mean. A request has a weight here, its tokens, and a home that the hash did not choose.
"""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

BOUND = Fraction(5, 4)
"""Times the mean that a replica may have to do before a request of its own prompts goes elsewhere."""
MAX_KEYS = 8192
"""Prompts that are remembered; the one that was not asked for longest is forgotten first."""
NUM_POINTS = 64
"""Of each replica on the ring."""


class Placed(NamedTuple):
    """Where a request goes, and what it counts for there, in tokens."""

    replica: int
    tokens: int


@dataclass(slots=True)
class _Home:
    """A prompt's replica, and the longest context of this prompt that each replica has read, in tokens."""

    replica: int
    read: dict[int, int] = field(default_factory=dict)


class Placing:
    """Which replica serves what; `loads` are the tokens that each has left to read and decode.

    Every decision is a function of the calls before it: no clock, no chance.
    """

    def __init__(self, num_replicas: int, *, keeps_prefixes: bool = True, max_keys: int = MAX_KEYS) -> None:
        self.loads = [0] * num_replicas
        self._load = 0  # the sum of all
        self._keeps_prefixes, self._max_keys = keeps_prefixes, max_keys
        self._homes: OrderedDict[int, _Home] = OrderedDict()
        points = [
            (_hash(f"{replica}/{point}"), replica) for replica in range(num_replicas) for point in range(NUM_POINTS)
        ]
        self._ring = sorted(points)

    def place(self, key: int, context_tokens: int, max_tokens: int, live: Collection[int]) -> Placed:
        """Choose one of the `live` replicas, and count the request there until `end`.

        A request counts for the tokens that it may generate, and for those of its context that the replica has not
        read yet: as many as it is longer than the longest one of the prompt that was read there.
        """
        live_load = self._load - sum(self.loads[away] for away in self._away(live))
        home = self._homes.get(key)
        if home is None or home.replica not in live:
            home = _Home(min(live, key=lambda replica: (self.loads[replica], replica)), home.read if home else {})
            self._homes[key] = home
        self._homes.move_to_end(key)
        if len(self._homes) > self._max_keys:
            self._homes.popitem(last=False)
        for replica in self._candidates(home.replica, key, live):
            read = home.read.get(replica, 0) if self._keeps_prefixes else 0
            tokens = max_tokens + max(context_tokens - read, 0)
            if self.loads[replica] * len(live) * BOUND.denominator <= BOUND.numerator * (live_load + tokens):
                home.read[replica] = max(context_tokens, home.read.get(replica, 0))
                self._count(replica, tokens)
                return Placed(replica, tokens)
        raise AssertionError("the replica with the least to do is within any bound")

    def end(self, placed: Placed) -> None:
        """Count a request no longer."""
        self._count(placed.replica, -placed.tokens)

    def forget(self, replica: int | None = None) -> None:
        """Forget what this replica has read, or all of them: its cache is empty again."""
        if replica is None:
            self._homes.clear()
            return
        for key, home in list(self._homes.items()):
            home.read.pop(replica, None)
            if home.replica == replica:
                del self._homes[key]

    @property
    def num_keys(self) -> int:
        """Prompts that are remembered."""
        return len(self._homes)

    def _count(self, replica: int, tokens: int) -> None:
        self.loads[replica] += tokens
        self._load += tokens

    def _away(self, live: Collection[int]) -> Iterator[int]:
        num_replicas = len(self.loads)
        return (replica for replica in range(num_replicas if len(live) < num_replicas else 0) if replica not in live)

    def _candidates(self, first: int, key: int, live: Collection[int]) -> Iterator[int]:
        """Yield the prompt's own replica, then the live ones in the order of the ring behind the prompt's place."""
        yield first
        start, seen = bisect(self._ring, (_hash(f"prompt {key}"), -1)), {first}
        for place in range(start - len(self._ring), start):
            replica = self._ring[place][1]
            if replica not in seen:
                seen.add(replica)
                if replica in live:
                    yield replica


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
