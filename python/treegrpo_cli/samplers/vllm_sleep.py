"""vLLM's engine on CUDA -> asleep while the policy is updated on the same card, and awake again with new weights.

Level 2 drops weights and cache: all weights are sent afterwards anyway. Level 1 keeps a copy of the weights on the
host, for an engine that gets adapters alone. Written against vLLM's source; no test runs it on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.models.memory import gib
from treegrpo_cli.samplers.vllm_settings import free_memory


class Sleep:
    """The sleep of one engine on the card `index`."""

    def __init__(self, engine: Any, index: int, *, keeps_weights: bool) -> None:
        self._engine, self._index = engine, index
        self.level = 1 if keeps_weights else 2
        self._given = 0

    def fall_asleep(self) -> None:
        """Give weights and cache back; no request runs."""
        before, _ = free_memory(self._index)
        self._engine.sleep(level=self.level)
        self._given = free_memory(self._index)[0] - before

    @contextmanager
    def waking(self) -> Iterator[None]:
        """Take the memory of the weights back, let them be loaded, then take back that of the cache: the engine runs.

        Raises UserError where less is free than the engine gave: the trainer's memory is given back before.
        """
        gc.collect()
        free, _ = free_memory(self._index)
        if free < self._given:
            raise UserError(
                f"sampler.gpu_memory_utilization: the engine gave back {gib(self._given)} GiB for the update, "
                f"and only {gib(free)} GiB are free on cuda:{self._index} after it; set a lower share"
            )
        self._engine.wake_up(tags=["weights"])
        yield
        self._engine.wake_up(tags=["kv_cache"])

    def end(self) -> None:
        """Wake what still sleeps, where there is room: memory goes back cleanly only while it is mapped."""
        gc.collect()
        with suppress(RuntimeError):
            self._engine.wake_up()
