"""An engine whose process lives and answers no more -> killed, so that it counts as gone and is started again.

An engine that died says so by itself. One that hangs, in a kernel of its card or as a stopped process, would be waited
for without an end: nothing bounds how long a turn may take. So each is asked for a sign of life from time to time,
which it gives between two steps; a limit that no single step reaches says that it hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from threading import Event, Thread
from typing import Any

HANG_S = 600.0
"""Seconds that one step on a card, or one chunk of new weights, never takes."""
CPU_HANG_S = 3600.0
"""As many without a card, where a step may read long prompts for minutes."""
PAUSE_S = 30.0
"""Between two signs of life."""
SLICE_S = 0.5


def hang_s(device: str) -> float:
    """Return how long an engine on this device may give no sign of life.

    >>> hang_s("cuda"), hang_s("cpu")
    (600.0, 3600.0)
    """
    return HANG_S if device == "cuda" else CPU_HANG_S


class Watch:
    """Asks one actor for signs of life in a thread of its own; `on_hang` is called once, when none comes.

    It ends with the actor.
    """

    def __init__(self, actor: Any, limit_s: float, on_hang: Callable[[], None]) -> None:
        self._actor, self._limit_s, self._on_hang = actor, limit_s, on_hang
        self._ended = Event()
        self._thread = Thread(target=self._run, name="watch over an engine", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ask no more; behind it Ray may be left."""
        self._ended.set()
        self._thread.join(2 * SLICE_S)

    def _run(self) -> None:
        import ray
        from ray.exceptions import ActorDiedError, RayError

        while not self._ended.is_set():
            asked = self._actor.alive.remote()
            if not self._comes(asked):
                if not self._ended.is_set():
                    self._on_hang()
                return
            try:
                ray.get(asked)
            except ActorDiedError:
                return
            except RayError:  # out of reach for now: who asks it for turns finds out
                pass
            self._ended.wait(PAUSE_S)

    def _comes(self, asked: Any) -> bool:
        """Whether an answer comes in time; what is counted is time in which this process ran, too."""
        import ray

        for _ in range(ceil(self._limit_s / SLICE_S)):
            if self._ended.is_set():
                return False
            if ray.wait([asked], timeout=SLICE_S)[0]:
                return True
        return False
