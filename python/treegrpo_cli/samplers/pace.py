"""When an engine may take its next step, and where: what keeps an event loop and an engine from starving each other."""

from __future__ import annotations

import asyncio
import time

from treegrpo_cli.free_time import SHORT_S, num_waiting

MAX_SETTLE_S = 0.1
"""A coroutine that never rests does not stop the engine for longer: of this thread's own time, so that what shares a
step does not depend on what else the machine does."""
MAX_PATIENCE = 0.1
"""Share of a step that is waited, at most, for calls which were just made."""
MIN_PATIENCE = 0.002
NAP_S = 5e-5
TURNS_WITHOUT_A_QUEUE = 20
"""Turns of a loop that does not show what is ready."""


class Pace:
    """What the steps of an engine have to do with what else goes on in the loop."""

    def __init__(self) -> None:
        self._step_s = 0.0
        self._patience = MAX_PATIENCE
        self._num_slow = 0

    def note(self, step_s: float) -> None:
        """Remember how long a step took."""
        self._step_s += 0.2 * (step_s - self._step_s) if self._step_s else step_s

    def beside_the_loop(self) -> bool:
        """Whether the next step belongs into a thread: it will be felt, and somebody waits for the world."""
        return num_waiting() > 0 and self._step_s >= SHORT_S

    async def settle(self) -> None:
        """Let everything run that is ready, and give calls that were just made a moment to be answered.

        Most tools answer at once, but from a thread of their own: what they lead to shall join the next
        step, not the one behind it. Where that was in vain, the next moments are shorter.
        """
        await run_what_is_ready()
        start = time.monotonic()
        num_new = num_waiting() - self._num_slow
        while num_waiting() > self._num_slow and time.monotonic() - start < self._patience * self._step_s:
            time.sleep(NAP_S)
            await run_what_is_ready()
        if num_new > 0:
            answered = num_waiting() < self._num_slow + num_new
            self._patience = MAX_PATIENCE if answered else max(self._patience / 2, MIN_PATIENCE)
        self._num_slow = num_waiting()


async def run_what_is_ready() -> None:
    """Turn the event loop until nothing in it is ready to run, sockets and timers included."""
    start = time.thread_time()
    ready = getattr(asyncio.get_running_loop(), "_ready", None)  # of asyncio's own loops
    idle_turns = turns = 0
    while idle_turns < 2 and time.thread_time() - start < MAX_SETTLE_S:
        await asyncio.sleep(0)
        turns += 1
        # the last turn may have written to a socket whose other end is ours as well: one more look at the sockets
        idle = not ready if ready is not None else turns > TURNS_WITHOUT_A_QUEUE
        idle_turns = idle_turns + 1 if idle else 0
