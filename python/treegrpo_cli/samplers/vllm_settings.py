"""Settings + a model + a device -> the arguments that vLLM's engine is started with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.models.memory import gib
from treegrpo_cli.models.pretrained import read_model_config
from treegrpo_cli.models.sizes import ModelSizes

if TYPE_CHECKING:
    from treegrpo_cli.config import SamplerConfig

CPU_BLOCK_TOKENS = 32
"""The smallest block there, so that short prompts are cached too: only full blocks are."""
SHORT_SEQUENCE_TOKENS = 1024
MAX_DEFAULT_KV_BYTES = 4 << 30
BATCHED_TOKENS, LARGE_CARD_BATCHED_TOKENS = 8192, 16384
LARGE_CARD_BYTES = 70 << 30
"""As vLLM chooses for its own `LLM`; an engine that is stepped from outside would get 2,048."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
"""What the families call the number of their experts in a model's configuration."""


def cpu_settings(model_path: str, config: SamplerConfig, dtype: str, max_model_len: int) -> dict[str, Any]:
    """Return the engine's settings on CPU, where it needs to be told the size of its cache.

    Prompts are prefilled whole: in chunks, a request with a seed crashes the CPU engine.
    """
    tokens = max(max_model_len, config.max_num_seqs * min(max_model_len, SHORT_SEQUENCE_TOKENS))
    token_bytes = kv_bytes_per_token(model_path, dtype)
    smallest = (max_model_len + 2 * CPU_BLOCK_TOKENS) * token_bytes
    return {
        "enforce_eager": True,
        "block_size": CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": max(
            config.kv_cache_bytes or min(tokens * token_bytes, MAX_DEFAULT_KV_BYTES), smallest
        ),
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, batched_tokens(config, 0)),
    }


def gpu_settings(
    model_path: str,
    config: SamplerConfig,
    device: str,
    *,
    reloads: bool,
    say: Callable[[str], None],
    tensor_parallel: int = 1,
) -> dict[str, Any]:
    """Return the engine's settings on a GPU that it shares with the trainer, or on that and those behind it.

    `reloads`: whether new weights are loaded into the running engine. Some backends of experts would go on with the
    old ones in a captured graph. Raises UserError where a card has less free memory than the engine will ask for.
    """
    import torch

    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    indices = list(range(index, index + tensor_parallel))
    memory = {number: free_memory(number) for number in indices}
    free, total = min(memory.values())
    share = config.gpu_memory_utilization
    if config.kv_cache_bytes:  # the share then sizes nothing; the engine only looks whether so much is free
        share = min(share, max(0.9 * free / total, 0.01))
    for number in indices:
        check_free_memory(share, *memory[number], number)
    eager = config.enforce_eager
    if reloads and not eager and has_experts(read_model_config(model_path)):
        say("the engine runs eagerly: with a mixture of experts, CUDA graphs may go on with old weights")
        eager = True
    return {
        "device_ids": indices,
        "enforce_eager": eager,
        "gpu_memory_utilization": share,
        "kv_cache_memory_bytes": config.kv_cache_bytes or None,
        "max_num_batched_tokens": batched_tokens(config, total),
    }


def float32_head(dtype: str) -> dict[str, Any]:
    """Return what makes the engine compute logits in float32, which log-probabilities need where the model does not."""
    return {} if dtype == "float32" else {"head_dtype": "float32"}


def free_memory(index: int) -> tuple[int, int]:
    """Return a card's free and whole memory in bytes, once torch has given back what it keeps for later."""
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(index)


def check_free_memory(utilization: float, free: int, total: int, index: int) -> None:
    """Raise UserError unless a share of a card's memory is free; the engine asks for just that when it starts."""
    if free < utilization * total:
        possible = int(100 * free / total) / 100
        remedy = f"set it to {possible} or less" if possible >= 0.01 else "free the card"
        raise UserError(
            f"sampler.gpu_memory_utilization: the engine would take {utilization:g} of {gib(total)} GiB, and "
            f"{gib(free)} GiB are free on cuda:{index} beside the trainer and others; {remedy}"
        )


def batched_tokens(config: SamplerConfig, card_bytes: int) -> int:
    """Return the tokens of one engine step: as set, or by the size of the card (0: a CPU)."""
    chosen = LARGE_CARD_BATCHED_TOKENS if card_bytes >= LARGE_CARD_BYTES else BATCHED_TOKENS
    return max(config.max_num_batched_tokens or chosen, config.max_num_seqs)


def has_experts(model_config: Any) -> bool:
    """Return whether a model's configuration asks for a mixture of experts."""
    text = model_config.get_text_config()
    return any((getattr(text, name, None) or 0) > 1 for name in EXPERT_COUNTS)


def kv_bytes_per_token(model_path: str, dtype: str) -> int:
    """Return the bytes that keys and values of one token take in all layers."""
    return ModelSizes.of_config(read_model_config(model_path)).cached_bytes(4 if dtype == "float32" else 2)
