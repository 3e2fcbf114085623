"""Settings + a causal LM without weights -> the bytes that an engine takes on its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.models.devices import choose_dtype
from treegrpo_cli.models.sizes import ModelSizes
from treegrpo_cli.samplers.engine import named
from treegrpo_cli.samplers.vllm_settings import cpu_settings

WORK_BYTES = 3 << 29
"""What vLLM on a GPU needs beside weights and cache: its largest batch, logits, graphs (read, not measured)."""

ASLEEP_BYTES = 1 << 30
"""What it keeps of that while it sleeps."""

HANDED_COPIES = 3
"""Of the largest weight, in float32: merged, rounded, and what the engine holds of a layer until it is whole."""

TRANSFER_BYTES = 256 << 20
"""Of a buffer that weights are packed into on their way from card to card."""


@dataclass(frozen=True, slots=True)
class EngineBytes:
    """Bytes of an engine on one device: `weights` in its dtype, and `cache`, keys and values with what it works in.

    `share` > 0: it takes this part of the whole device, weights and cache included, and `cache` is the least that it
    can do with: one sequence. `handed`: what lives beside it while new weights come. `sleeps`: it
    gives its memory back while the policy is updated, but for `ASLEEP_BYTES`.
    """

    weights: int
    cache: int
    share: float = 0.0
    handed: int = 0
    sleeps: bool = False

    @property
    def least(self) -> int:
        """What it cannot do without."""
        return self.weights + self.cache

    def on(self, device_bytes: int) -> int:
        """What it takes of a device of this size."""
        return max(int(self.share * device_bytes), self.least)

    def asleep_on(self, device_bytes: int) -> int:
        """What it takes of it while the policy is updated."""
        return ASLEEP_BYTES if self.sleeps else self.on(device_bytes)


def engine_bytes(config: Config, model: Any, device: torch.device, engine: str) -> EngineBytes:
    """Count for an engine by its name; `model` is on torch's meta device. One that runs elsewhere takes nothing here.

    On one of the GPUs of an engine that spreads over several, each has its part of weights and heads. The transformers
    engine's cache grows with its batch, and one sequence is counted. Raises UncountableError.
    """
    if not named(engine).is_here:
        return EngineBytes(0, 0)
    dtype, sizes = choose_dtype(config.model.dtype, device), ModelSizes.of(model)
    weights = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    tokens = min(config.rollout.context_tokens, sizes.max_tokens or config.rollout.context_tokens)
    parts = config.scale.tensor_parallel
    weights, sequence = -(-weights // parts), tokens * sizes.cached_bytes(dtype.itemsize) // min(parts, _heads(model))
    is_shared = dtype == torch.float32 and not config.model.lora_rank  # the policy's own tensors are handed over
    largest = max(weight.numel() for weight in model.parameters())
    handed = 0 if is_shared else HANDED_COPIES * torch.float32.itemsize * largest
    if engine != "vllm":
        return EngineBytes(weights, sequence, handed=handed)
    if device.type == "cpu":
        name = str(dtype).removeprefix("torch.")
        settings = cpu_settings(config.model.path, config.sampler, name, tokens)
        return EngineBytes(weights, settings["kv_cache_memory_bytes"], handed=handed)
    sleeps = config.sampler.sleep is not False
    if config.sampler.kv_cache_bytes:
        return EngineBytes(weights, WORK_BYTES + config.sampler.kv_cache_bytes, handed=handed, sleeps=sleeps)
    share = config.sampler.gpu_memory_utilization
    return EngineBytes(weights, WORK_BYTES + sequence, share, handed, sleeps)


def _heads(model: Any) -> int:
    """The heads of keys and values; GPUs beyond their number have copies."""
    text = model.config.get_text_config()
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
