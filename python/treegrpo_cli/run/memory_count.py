"""Settings + a model's configuration -> the bytes of trainer and engine on one device, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.samplers.footprint import EngineBytes, engine_bytes
from treegrpo_cli.train.footprint import TrainerBytes, trainer_bytes

CUDA_BYTES = 1 << 30
"""Of a GPU for CUDA itself: its context, kernels, what allocators lose."""


@dataclass(frozen=True, slots=True)
class MemoryCount:
    """Bytes of trainer and engine on one device, either of which may be none; `overhead` is the device's own."""

    trainer: TrainerBytes
    engine: EngineBytes
    overhead: int

    def phases(self, device_bytes: int) -> dict[str, int]:
        """What each phase needs at once, on a device of this size; gradients are there in an update alone."""
        trainer, engine = self.trainer, self.engine
        kept = self.overhead + trainer.kept
        phases = {"rollouts": kept + engine.on(device_bytes)} if engine.least else {}
        if trainer.kept:
            phases["the update"] = kept + trainer.gradients + trainer.micro_batch + engine.asleep_on(device_bytes)
        awake = engine.weights if engine.sleeps else engine.on(device_bytes)
        return phases | {"new weights": kept + engine.handed + awake}

    def peak(self, device_bytes: int) -> int:
        """The most that is needed at once."""
        return max(self.phases(device_bytes).values())

    def lacks_share(self, device_bytes: int) -> bool:
        """Whether the engine's share of the device cannot hold what it needs."""
        return 0 < self.engine.share * device_bytes < self.engine.least

    @property
    def certain(self) -> MemoryCount:
        """The same without what is an estimate, or is taken only where it is there."""
        trainer = replace(self.trainer, copies=0, activations=0, head=0, layer=0, exchanged=0)
        return replace(self, trainer=trainer, engine=EngineBytes(self.engine.weights, 0))

    def parts(self, device_bytes: int) -> dict[str, int]:
        """Each part by its name, without those that this device does not have."""
        trainer = self.trainer
        engine = "engine, asleep in the update" if self.engine.sleeps else "engine"
        parts = {
            "weights": trainer.weights,
            "gradients": trainer.gradients,
            "AdamW's moments": trainer.moments,
            "reference": trainer.reference,
            "of other ranks at a time": trainer.exchanged,
            "bfloat16 copies": trainer.copies,
            "activations": trainer.activations,
            "head or a layer": max(trainer.head, trainer.layer),
            engine: self.engine.on(device_bytes),
            "CUDA": self.overhead,
        }
        return {name: part for name, part in parts.items() if part}


def count(config: Config, model: Any, device: torch.device, engine: str) -> MemoryCount:
    """Count one process for `model`, a causal LM on torch's meta device, and an engine by its name.

    Raises UserError where adapters do not fit the model, UncountableError where it does not name its sizes.
    """
    return MemoryCount(
        trainer=trainer_bytes(config, model, device),
        engine=engine_bytes(config, model, device, engine),
        overhead=CUDA_BYTES if device.type == "cuda" else 0,
    )
