"""One engine in a process of its own: what a Ray actor steps, and what may be asked of it from elsewhere."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.scale.cluster import Environment, enter_environment
from treegrpo_cli.scale.turn_calls import Asked, Ended, TurnAnswers
from treegrpo_cli.scale.weights import Header, Receiver

if TYPE_CHECKING:
    from treegrpo_cli.config import SamplerConfig
    from treegrpo_cli.samplers.base import EngineCounts, Trained
    from treegrpo_cli.samplers.vllm_transfer import WeightTransfer


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What `samplers.make_sampler` is called with, in the driver's environment."""

    environment: Environment
    config: SamplerConfig
    model_path: str
    dtype: str
    device: str
    max_model_len: int
    seed: int
    log_path: Path | None
    trained: Trained | None
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself when it has started; `said` are lines for the user."""

    name: str
    pid: int
    max_model_len: int
    takes_adapter: bool
    keeps_prefixes: bool
    said: tuple[str, ...]


class EngineActor(Receiver):
    """Holds one sampler and lets its own event loop step it; all calls run in that loop, so that none meets a step.

    Weights come by `Receiver`'s calls, between rollouts.
    """

    def __init__(self) -> None:
        self._answers: dict[int, TurnAnswers] = {}

    async def start(self, settings: EngineSettings) -> EngineFacts:
        """Start the engine. Raises UserError, as `make_sampler` does."""
        enter_environment(settings.environment)
        from treegrpo_cli.samplers import make_sampler
        from treegrpo_cli.samplers.stepping import SteppedSampler

        said: list[str] = []
        self.sampler = sampler = make_sampler(
            settings.config,
            settings.model_path,
            dtype=settings.dtype,
            device=settings.device,
            max_model_len=settings.max_model_len,
            seed=settings.seed,
            log_path=settings.log_path,
            say=said.append,
            trained=settings.trained,
            tensor_parallel=settings.tensor_parallel,
        )
        keeps_prefixes = isinstance(sampler, SteppedSampler) and sampler.keeps_prefixes
        facts = (sampler.name, os.getpid(), sampler.max_model_len, sampler.takes_adapter, keeps_prefixes)
        return EngineFacts(*facts, tuple(said))

    async def sample(self, loop: int, asked: Sequence[Asked]) -> list[Ended]:
        """Begin turns for one of the driver's event loops; return those of its turns that have ended, once any has."""
        answers = self._answers.setdefault(loop, TurnAnswers())
        ended = await answers.sample(self.sampler, asked)
        if answers.is_over:
            self._answers.pop(loop, None)
        return ended

    async def drop(self, loop: int, number: int) -> None:
        """Forget a turn that nobody waits for any more; it may have ended."""
        self._answers.setdefault(loop, TurnAnswers()).drop(number)

    async def begin_weights(self, header: Header) -> None:  # type: ignore[override]
        """Wait for weights, behind what was dropped last."""
        await self._settled()
        super().begin_weights(header)

    async def alive(self) -> None:
        """Answer when nothing else is being done, and the step that runs has ended, wherever it runs."""
        from treegrpo_cli.samplers.stepping import SteppedSampler

        if isinstance(self.sampler, SteppedSampler):
            await self.sampler.step_ended()

    async def transfer_open(self, info: dict[str, Any]) -> None:
        """Meet a trainer that sends weights by vLLM's weight-transfer API."""
        self._transfer.open(info)

    async def transfer_begin(self) -> None:
        """Wait for its weights, behind what was dropped last."""
        await self._settled()
        self._transfer.begin()

    async def transfer_take(self, info: Any) -> None:
        """Take what it sends now."""
        self._transfer.take(info)

    async def transfer_end(self, policy_version: int) -> None:
        """Compute with the new weights."""
        self._transfer.end(policy_version)

    async def transfer_close(self) -> None:
        """Leave the trainer."""
        self._transfer.close()

    @property
    def _transfer(self) -> WeightTransfer:
        transfer: WeightTransfer | None = getattr(self.sampler, "transfer", None)
        assert transfer is not None, "this engine was started without weight transfer"
        return transfer

    async def sleep(self) -> None:
        """Give the engine's memory back until the next update."""
        await self._settled()
        self.sampler.sleep()

    async def take_counts(self) -> EngineCounts:
        """What the engine did since the last call."""
        return self.sampler.take_counts()

    async def close(self) -> None:
        """Free the engine."""
        self.sampler.close()

    async def _settled(self) -> None:
        """Wait until the turns that were dropped have ended."""
        while not all(answers.are_settled for answers in self._answers.values()):
            await asyncio.sleep(0)
