"""Settings + a model's configuration -> whether a run has the memory that it needs, before anything is loaded.

A run has three phases: rollouts, the update, and the hand-over of new weights. In a run of one process, trainer and
engine are side by side on one device; under Ray each kind of device is counted by itself. What does not fit is refused
with the settings that would make it fit, each found by counting again. Nothing is refused where the device is another
machine's: it is told what is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.errors import Problems
from treegrpo_cli.models.devices import choose_device
from treegrpo_cli.models.memory import DeviceMemory, gib, memory_of
from treegrpo_cli.models.pretrained import shape_of_causal_lm
from treegrpo_cli.models.sizes import UncountableError
from treegrpo_cli.run.cards import Card, cards
from treegrpo_cli.run.memory_count import MemoryCount
from treegrpo_cli.run.remedies import SMALLER, changed, remedy
from treegrpo_cli.run.traffic import told
from treegrpo_cli.samplers import choose_engine

NOT_HERE = DeviceMemory("", 0, 0)
"""Of a GPU on another machine."""


def memory_lines(config: Config) -> list[str]:
    """Return the count of a run on its devices, in words."""
    subject = _subject(config)
    try:
        counted = subject.cards(config)
        traffic = told(config, subject.model, subject.device, subject.engine)
    except UncountableError as error:
        return [f"memory: not counted: {error}"]
    return [line for card in counted for line in described(card, subject.memory)] + traffic


def bytes_of_run(config: Config) -> int:
    """Return the most that a run needs at once on the devices of this machine; 0 where that cannot be counted."""
    subject = _subject(config, here=True)
    try:
        return sum(card.number * card.count.peak(subject.memory.total) for card in subject.cards(config))
    except UncountableError:
        return 0


def described(card: Card, memory: DeviceMemory) -> list[str]:
    """Return a count in words: its parts, and what is needed at once."""
    counted, total = card.count, memory.total
    unit, size = ("GiB", 2**30) if counted.peak(total) >= 2**30 else ("MiB", 2**20)

    def sized(sizes: dict[str, int]) -> str:
        return ", ".join(f"{name} {num_bytes / size:,.1f}" for name, num_bytes in sizes.items())

    whose = f" of {card.whose}" + (f" ({card.number} of them)" if card.number > 1 else "") if card.whose else ""
    there = f"{memory.name} has {gib(memory.free)} GiB" if memory is not NOT_HERE else "no such GPU is here"
    if memory is NOT_HERE and counted.engine.share:
        there += f", and the engine takes {counted.engine.share} of its own"
    return [
        f"memory{whose} in {unit}: {sized(counted.parts(total))}",
        f"at once: {sized(counted.phases(total))}; {there}",
    ]


def check_memory(config: Config) -> None:
    """Raise Problems where a training run cannot fit its device, with the settings to change.

    On a GPU the estimate decides; elsewhere, where memory can be swapped, only what is certain.
    """
    subject = _subject(config)
    if lines := problems(config, subject.model, subject.device, subject.engine, subject.memory):
        raise Problems(lines)


def problems(config: Config, model: Any, device: torch.device, engine: str, memory: DeviceMemory) -> list[str]:
    """Return lines where a run does not fit into what is free; none where it does, or cannot be counted."""

    def counted(settings: Config) -> list[Card]:
        return [card for card in cards(settings, model, device, engine) if _is_held(card, settings, device, memory)]

    def fits(settings: Config) -> bool:
        return all(
            found.peak(memory.total) <= memory.free and not found.lacks_share(memory.total)
            for found in (_counted(card, device) for card in counted(settings))
        )

    try:
        wanted = counted(config)
    except UncountableError:
        return []
    shares = [_counted(card, device).engine for card in wanted if _counted(card, device).lacks_share(memory.total)]
    lines = []
    if shares:
        [sampling] = shares
        least = math.ceil(100 * sampling.least / memory.total) / 100
        lines.append(
            f"sampler.gpu_memory_utilization: the engine needs {gib(sampling.least)} GiB, and {sampling.share} of "
            f"{memory.name} is {gib(int(sampling.share * memory.total))}; "
            + (f"set it to {least} or more" if least <= 1 else SMALLER)
        )
        config = changed(config, [("sampler.gpu_memory_utilization", min(least, 1.0))])
    for card in counted(config):
        found = _counted(card, device)
        phase, need = max(found.phases(memory.total).items(), key=lambda item: item[1])
        if need > memory.free:
            verb, whose = "need" if phase.endswith("s") else "needs", f" on the GPU of {card.whose}" * bool(card.whose)
            mended = remedy(config, found.engine.least / memory.total if found.engine.share else 1.0, fits)
            lines.append(
                f"memory: {phase} {verb} {gib(need)} GiB{whose}, and {memory.name} has {gib(memory.free)}; {mended}"
            )
    return lines


def _counted(card: Card, device: torch.device) -> MemoryCount:
    """What decides: the estimate on a GPU, only what is certain elsewhere."""
    return card.count if device.type == "cuda" else card.count.certain


def _is_held(card: Card, config: Config, device: torch.device, memory: DeviceMemory) -> bool:
    """Whether a device like this one must hold it: under Ray a GPU of this machine, which other machines need not have.

    Processes on CPUs may be anywhere.
    """
    if memory is NOT_HERE or not config.scale.uses_ray:
        return memory is not NOT_HERE
    return device.type == "cuda" and (card.is_drivers or not config.scale.cluster)


@dataclass(frozen=True, slots=True)
class _Subject:
    model: Any
    device: torch.device
    engine: str
    memory: DeviceMemory

    def cards(self, config: Config) -> list[Card]:
        return cards(config, self.model, self.device, self.engine)


def _subject(config: Config, *, here: bool = False) -> _Subject:
    """What is counted. Under Ray the GPUs may be on other machines, unless it is asked what is needed `here`."""
    device, model = choose_device(config.model.device), shape_of_causal_lm(config.model.path)
    if config.scale.uses_ray and config.model.device == "auto" and device.type == "cpu" and not here:
        engine = "vllm" if config.sampler.engine == "auto" else config.sampler.engine
        return _Subject(model, torch.device("cuda"), engine, NOT_HERE)
    return _Subject(model, device, _engine(config, device), memory_of(device))


def _engine(config: Config, device: torch.device) -> str:
    """The engine that will run; on a CPU vLLM is not imported to find out."""
    if device.type == "cpu" and config.sampler.engine == "auto":
        return "transformers" if find_spec("vllm") is None else "vllm"
    return choose_engine(config.sampler.engine, device.type)
