"""Settings + a model's configuration -> the memory that a run needs, counted before anything is loaded.

A run has three phases, each with trainer and engine side by side: rollouts, the update, and the hand-over of new
weights. What does not fit is refused with the settings that would make it fit, each found by counting again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.errors import Problems
from treegrpo_cli.models.devices import choose_device
from treegrpo_cli.models.memory import DeviceMemory, gib, memory_of
from treegrpo_cli.models.pretrained import shape_of_causal_lm
from treegrpo_cli.models.sizes import UncountableError
from treegrpo_cli.run.remedies import changed, remedy
from treegrpo_cli.samplers import choose_engine
from treegrpo_cli.samplers.footprint import EngineBytes, engine_bytes
from treegrpo_cli.train.footprint import TrainerBytes, trainer_bytes

CUDA_BYTES = 1 << 30
"""Of a GPU for CUDA itself: its context, kernels, what allocators lose."""


@dataclass(frozen=True, slots=True)
class MemoryCount:
    """Bytes of trainer and engine on one device; `overhead` is the device's own."""

    trainer: TrainerBytes
    engine: EngineBytes
    overhead: int

    def phases(self, device_bytes: int) -> dict[str, int]:
        """What each phase needs at once, on a device of this size; gradients are there in an update alone."""
        trainer, engine = self.trainer, self.engine
        kept = self.overhead + trainer.kept
        return {
            "rollouts": kept + engine.on(device_bytes),
            "the update": kept + trainer.gradients + trainer.micro_batch + engine.asleep_on(device_bytes),
            "new weights": kept + engine.handed + (engine.weights if engine.sleeps else engine.on(device_bytes)),
        }

    def peak(self, device_bytes: int) -> int:
        """The most that is needed at once."""
        return max(self.phases(device_bytes).values())

    def lacks_share(self, device_bytes: int) -> bool:
        """Whether the engine's share of the device cannot hold what it needs."""
        return 0 < self.engine.share * device_bytes < self.engine.least

    @property
    def certain(self) -> MemoryCount:
        """The same without what is an estimate, or is taken only where it is there."""
        trainer = replace(self.trainer, copies=0, activations=0, head=0, layer=0)
        return replace(self, trainer=trainer, engine=EngineBytes(self.engine.weights, 0))

    def parts(self, device_bytes: int) -> dict[str, int]:
        """Each part by its name, without those that this run does not have."""
        trainer = self.trainer
        engine = "engine, asleep in the update" if self.engine.sleeps else "engine"
        parts = {
            "weights": trainer.weights,
            "gradients": trainer.gradients,
            "AdamW's moments": trainer.moments,
            "reference": trainer.reference,
            "bfloat16 copies": trainer.copies,
            "activations": trainer.activations,
            "head or a layer": max(trainer.head, trainer.layer),
            engine: self.engine.on(device_bytes),
            "CUDA": self.overhead,
        }
        return {name: part for name, part in parts.items() if part}


def count(config: Config, model: Any, device: torch.device, engine: str) -> MemoryCount:
    """Count for `model`, a causal LM on torch's meta device, and an engine by its name.

    Raises UserError where adapters do not fit the model, UncountableError where it does not name its sizes.
    """
    return MemoryCount(
        trainer=trainer_bytes(config, model, device),
        engine=engine_bytes(config, model, device, engine),
        overhead=CUDA_BYTES if device.type == "cuda" else 0,
    )


def memory_lines(config: Config) -> list[str]:
    """Return the count of a run on its device, in words."""
    model, device, engine, memory = _subject(config)
    try:
        counted = count(config, model, device, engine)
    except UncountableError as error:
        return [f"memory: not counted: {error}"]
    return described(counted, memory)


def bytes_of_run(config: Config) -> int:
    """Return the most that a run needs at once on its device; 0 where that cannot be counted."""
    model, device, engine, memory = _subject(config)
    try:
        return count(config, model, device, engine).peak(memory.total)
    except UncountableError:
        return 0


def described(counted: MemoryCount, memory: DeviceMemory) -> list[str]:
    """Return a count in words: its parts, and what is needed at once."""
    unit, size = ("GiB", 2**30) if counted.peak(memory.total) >= 2**30 else ("MiB", 2**20)

    def told(sizes: dict[str, int]) -> str:
        return ", ".join(f"{name} {num_bytes / size:,.1f}" for name, num_bytes in sizes.items())

    return [
        f"memory in {unit}: {told(counted.parts(memory.total))}",
        f"at once: {told(counted.phases(memory.total))}; {memory.name} has {gib(memory.free)} GiB",
    ]


def check_memory(config: Config) -> None:
    """Raise Problems where a training run cannot fit its device, with the settings to change.

    On a GPU the estimate decides; elsewhere, where memory can be swapped, only what is certain.
    """
    model, device, engine, memory = _subject(config)
    if lines := problems(config, model, device, engine, memory):
        raise Problems(lines)


def problems(config: Config, model: Any, device: torch.device, engine: str, memory: DeviceMemory) -> list[str]:
    """Return a line where a run does not fit into what is free; none where it does, or cannot be counted."""

    def counted(settings: Config) -> MemoryCount:
        found = count(settings, model, device, engine)
        return found if device.type == "cuda" else found.certain

    def fits(settings: Config) -> bool:
        found = counted(settings)
        return found.peak(memory.total) <= memory.free and not found.lacks_share(memory.total)

    lines = []
    try:
        wanted = counted(config)
    except UncountableError:
        return []
    if wanted.lacks_share(memory.total):
        least = math.ceil(100 * wanted.engine.least / memory.total) / 100
        share, needed = wanted.engine.share, gib(wanted.engine.least)
        lines.append(
            f"sampler.gpu_memory_utilization: the engine needs {needed} GiB, and {share} of {memory.name} is "
            f"{gib(int(share * memory.total))}; "
            + (f"set it to {least} or more" if least <= 1 else "take a smaller model or a larger device")
        )
        config = changed(config, [("sampler.gpu_memory_utilization", min(least, 1.0))])
        wanted = counted(config)
    phase, need = max(wanted.phases(memory.total).items(), key=lambda item: item[1])
    if need > memory.free:
        verb = "need" if phase.endswith("s") else "needs"
        mended = remedy(config, wanted.engine.least / memory.total if wanted.engine.share else 1.0, fits)
        lines.append(f"memory: {phase} {verb} {gib(need)} GiB, and {memory.name} has {gib(memory.free)}; {mended}")
    return lines


def _subject(config: Config) -> tuple[Any, torch.device, str, DeviceMemory]:
    device = choose_device(config.model.device)
    return shape_of_causal_lm(config.model.path), device, _engine(config, device), memory_of(device)


def _engine(config: Config, device: torch.device) -> str:
    """The engine that will run; on a CPU vLLM is not imported to find out."""
    if device.type == "cpu" and config.sampler.engine == "auto":
        return "transformers" if find_spec("vllm") is None else "vllm"
    return choose_engine(config.sampler.engine, device.type)
