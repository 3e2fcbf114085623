"""New weights that go from rank to engine, card to card -> an `Update` that the routed sampler hands out.

All engines take part in one exchange, which the ranks begin when the first engine is to take its weights. One that is
not part of it, since it came back meanwhile or later, is brought weights through the object store: they are gathered
for it when it asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

LOOK_S = 1.0
"""Seconds between two looks at an engine that takes weights."""


class CardUpdate:
    """Weights of a version for `members`, the actors that take part; `exchange` blocks until all of them have these.

    An exchange whose member died may never end: `abort` is called then, and has to end it with an error. `bring` sends
    weights to one more actor, at any time: those of this version, or newer ones where a step has been trained since.
    """

    lasts = True

    def __init__(
        self,
        policy_version: int,
        members: Sequence[Any],
        exchange: Callable[[], None],
        abort: Callable[[], None],
        bring: Callable[[Any], None],
    ) -> None:
        self.policy_version = policy_version
        self._members, self._exchange, self._abort, self._bring = members, exchange, abort, bring
        self._lock = Lock()
        self._exchanged: Future[None] | None = None

    def send_to(self, actor: Any) -> None:
        """Return when an engine has the weights. It raises what Ray raises where that engine died."""
        if actor not in self._members:
            self._bring(actor)
            return
        exchanged = self._begin()
        try:
            _watch(actor, exchanged)
        except BaseException:
            self._abort()
            raise
        exchanged.result()

    def _begin(self) -> Future[None]:
        with self._lock:
            if self._exchanged is None:
                pool = ThreadPoolExecutor(1, thread_name_prefix="weights from card to card")
                self._exchanged = pool.submit(self._exchange)
                pool.shutdown(wait=False)
            return self._exchanged


def _watch(actor: Any, exchanged: Future[None]) -> None:
    """Return when the exchange has ended, and raise where the engine dies before."""
    import ray

    alive = actor.alive.remote()
    while not wait([exchanged], timeout=LOOK_S).done:
        if ray.wait([alive], timeout=0)[0]:
            ray.get(alive)
            alive = actor.alive.remote()
