"""Turns -> the engine, or a halt in front of it: new weights and evaluations come between two turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treegrpo_cli.samplers.base import Sampler
    from treegrpo_cli.types import Completion, SamplingParams, TokenIds


class Gate:
    """Stands in front of a sampler of any kind.

    While it is closed new turns wait, and those in flight end: each is sampled by the weights of one version, and drawn
    to its end, however long it is (turns that were given up would leave the short ones). Tools go on.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._num_inside = 0

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """Sample a turn as soon as the gate is open."""
        while not self._open.is_set():  # it may have been closed again before who waited is woken
            await self._open.wait()
        self._num_inside += 1
        self._empty.clear()
        try:
            return await self._sampler.sample(context, params, seed)
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._empty.set()

    async def close(self) -> None:
        """Hold new turns, and return when the last of those in flight has ended: within the time of a longest turn."""
        self._open.clear()
        await self._empty.wait()

    def open(self) -> None:
        """Let turns through again."""
        self._open.set()
