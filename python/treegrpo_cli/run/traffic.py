"""A model's weights + the processes that share a step -> the bytes that the step moves between them.

    to engines      the state dict in `model.dtype`, to every GPU of every engine
    gathered        by each rank, a round: every layer for the forward and again for the backward pass, the rest once
    summed          by each rank, a round: gradients of what is trained, in float32
    trees           the forest's columns, to each machine with ranks

A round is a micro-batch on every rank. A rank keeps its part of all weights and receives what the others have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.models.devices import choose_dtype
from treegrpo_cli.train.footprint import Parts, exchanged_parts

TOKEN_BYTES = 14
"""Of a token in a forest's columns: id 4, sampled 1, part of a tool call 1, log-probability 4, entropy 4."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The processes of a step, and on how many machines its ranks are."""

    ranks: int = 1
    engines: int = 1
    tensor_parallel: int = 1
    machines: int = 1


@dataclass(frozen=True, slots=True)
class StepTraffic:
    """Bytes of one step: `gathered` and `summed` are what each rank receives, the others of all processes together."""

    to_engines: int
    gathered: int
    summed: int
    trees: int


def step_traffic(
    sent: int,
    weights: Parts,
    gradients: Parts,
    spread: Spread,
    *,
    tokens: int,
    microbatch_tokens: int,
    forwards: int = 0,
) -> StepTraffic:
    """Count a step of so many tokens, in full micro-batches.

    `sent`: of `bytes_sent` · `weights`, `gradients`: of `train.footprint.exchanged_parts` · `forwards`: passes without
    a gradient beside the one that is trained on, such as the reference's.
    """
    rounds = math.ceil(tokens / (microbatch_tokens * spread.ranks))
    forward = received(weights.whole, spread.ranks)
    return StepTraffic(
        to_engines=sent * spread.engines * spread.tensor_parallel,
        gathered=rounds * (gathered_a_round(weights, spread.ranks) + forwards * forward),
        summed=rounds * received(gradients.whole, spread.ranks),
        trees=tokens * TOKEN_BYTES * spread.machines,
    )


def bytes_sent(model: Any, dtype: torch.dtype) -> int:
    """Return the bytes of the state dict that every GPU of every engine receives in a step.

    A weight that is tied goes under each of its names.
    """
    return sum(
        tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize
        for tensor in model.state_dict().values()
    )


def gathered_a_round(weights: Parts, ranks: int) -> int:
    """Return what a rank receives of weights in one forward and backward pass.

    >>> gathered_a_round(Parts(layers=800, layer=100, rest=200), ranks=4)
    1350
    """
    return received(2 * weights.layers + weights.rest, ranks)


def received(num_bytes: int, ranks: int) -> int:
    """Return what a rank receives of bytes that it has its part of: of gradients, what it is sent to add up."""
    return num_bytes * (ranks - 1) // ranks


def told(config: Config, model: Any, device: torch.device, engine: str) -> list[str]:
    """Return what moves in a run under Ray, in words; an adapter that the engine takes goes by itself."""
    scale = config.scale
    weights, gradients = exchanged_parts(config, model, device)
    lines = []
    if scale.engines:
        goes_alone = config.model.lora_rank and config.sampler.lora != "merged" and engine == "vllm"
        sent = gradients.whole if goes_alone else bytes_sent(model, choose_dtype(config.model.dtype, device))
        num_gpus = scale.engines * scale.tensor_parallel
        each = f", {_size(sent)} to each of {num_gpus} GPUs" if num_gpus > 1 and device.type == "cuda" else ""
        lines.append(f"weights to engines: {_size(num_gpus * sent)} a step{each}")
    if scale.trainer_ranks > 1:
        gathered = gathered_a_round(weights, scale.trainer_ranks)
        summed = received(gradients.whole, scale.trainer_ranks)
        lines.append(
            f"between ranks: each receives {_size(gathered)} of weights and {_size(summed)} of gradients for a "
            "micro-batch on each"
        )
    return lines


def _size(num_bytes: int) -> str:
    unit, size = ("GiB", 2**30) if num_bytes >= 2**30 else ("MiB", 2**20)
    return f"{num_bytes / size:,.1f} {unit}"
