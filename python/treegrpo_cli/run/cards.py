"""Settings + a model's configuration -> what each kind of device of a run holds: of a run of one process, of `[scale]`.

    one process     trainer and engine
    colocated       a rank and its engine, each a process of its own
    separate        a rank · an engine's part
    one of them     what the driver has itself, on its own device · the others

The device that a rank trains on keeps its part of weights, gradients, moments and reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.run.memory_count import CUDA_BYTES, MemoryCount, count
from treegrpo_cli.samplers.footprint import TRANSFER_BYTES, EngineBytes, engine_bytes
from treegrpo_cli.train.footprint import TrainerBytes, trainer_bytes

NCCL_BYTES = 1 << 29
"""Of a GPU for the buffers of NCCL where several work together (read, not measured)."""

NUM_BUFFERS = 2
NO_TRAINER = TrainerBytes(*[0] * 8)


@dataclass(frozen=True, slots=True)
class Card:
    """A kind of device: whose it is (empty in a run of one process), how many there are, and what one holds.

    `is_drivers`: it is the device of this process.
    """

    whose: str
    number: int
    count: MemoryCount
    is_drivers: bool = True


def cards(config: Config, model: Any, device: torch.device, engine: str) -> list[Card]:
    """Count for `model`, on torch's meta device, and an engine by its name; `device` is one of its kind.

    Raises UserError where adapters do not fit the model, UncountableError where it does not name its sizes.
    """
    scale = config.scale
    if not scale.uses_ray:
        return [Card("", 1, count(config, model, device, engine))]
    trainer = trainer_bytes(config, model, device, max(scale.trainer_ranks, 1))
    sampling = engine_bytes(config, model, device, engine)
    handed, copy = _buffers(config, device, engine), _largest(model)
    if scale.placement == "colocated":
        both = replace(sampling, handed=handed + 3 * copy)
        return [Card("a rank and its engine", scale.trainer_ranks, _on(device, trainer, both, config))]
    sending = EngineBytes(0, 0, handed=handed + 2 * copy)
    ranks = Card(
        "a rank" if scale.trainer_ranks else "the trainer in this process",
        max(scale.trainer_ranks, 1),
        _on(device, trainer, sending, config),
        is_drivers=not scale.trainer_ranks,
    )
    if not sampling.least:
        return [ranks]
    taking = replace(sampling, handed=handed + copy, sleeps=False)
    engines = Card(
        "an engine" if scale.engines else "the engine in this process",
        max(scale.engines, 1) * scale.tensor_parallel,
        _on(device, NO_TRAINER, taking, config),
        is_drivers=not scale.engines,
    )
    return [ranks, engines]


def _on(device: torch.device, trainer: TrainerBytes, engine: EngineBytes, config: Config) -> MemoryCount:
    """Trainer and engine on one device, each in a process of its own."""
    if device.type != "cuda":
        return MemoryCount(trainer, engine, 0)
    scale, trains, samples = config.scale, trainer.kept > 0, engine.least > 0
    together = (trains and scale.trainer_ranks > 1) or (samples and scale.tensor_parallel > 1)
    together = together or (scale.trainer_ranks > 0 and scale.engines > 0 and scale.placement == "separate")
    return MemoryCount(trainer, engine, (trains + samples) * CUDA_BYTES + together * NCCL_BYTES)


def _buffers(config: Config, device: torch.device, engine: str) -> int:
    """What vLLM's weight transfer packs tensors into, on either side; other ways need none on a device."""
    by_card = config.scale.trainer_ranks and config.scale.engines and device.type == "cuda" and engine == "vllm"
    return NUM_BUFFERS * TRANSFER_BYTES if by_card else 0


def _largest(model: Any) -> int:
    """The largest weight in float32: the trainer gathers and rounds it, the engine holds it until a layer is whole."""
    return int(max(weight.numel() for weight in model.parameters())) * torch.float32.itemsize
