"""New weights that go from rank to engine, card to card -> an `Update` that the routed sampler hands out.

All engines take part in one exchange, which the ranks begin when the first engine is to take its weights. One that is
not part of it, since it came back meanwhile, reads the same weights from the object store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

from treegrpo_cli.scale.weights import Published, send

LOOK_S = 1.0
"""Seconds between two looks at an engine that takes weights."""


class CardUpdate:
    """Weights of a version for `members`, the actors that take part; `exchange` blocks until all of them have these.

    An exchange whose member died may never end: `abort` is called then, and has to end it with an error.
    """

    lasts = False

    def __init__(
        self, members: Sequence[Any], exchange: Callable[[], None], abort: Callable[[], None], beside: Published
    ) -> None:
        self.policy_version = beside.policy_version
        self._members, self._exchange, self._abort, self._beside = members, exchange, abort, beside
        self._lock = Lock()
        self._exchanged: Future[None] | None = None

    def send_to(self, actor: Any) -> None:
        """Return when an engine has the weights. It raises what Ray raises where that engine died."""
        if actor not in self._members:
            send(self._beside, actor)
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
