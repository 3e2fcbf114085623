"""`[sampler]` of the settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from treegrpo_cli.config.sections.base import Count, NonNegativeInt, Section, TokensOrNone


class SamplerConfig(Section):
    """The engine that samples turns."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """The engine that generates turns. `auto` takes vLLM where it is installed, else transformers."""
    max_num_seqs: Count = 256
    """Most turns that are decoded in one batch. More are faster until memory for keys and values runs out."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of the whole card that vLLM takes for weights and cache together. Lower it if the update runs out of
    memory. `kv_cache_bytes` replaces it."""
    kv_cache_bytes: NonNegativeInt = 0
    """Bytes for the engine's keys and values. 0 takes the rest of `gpu_memory_utilization` on a GPU, and enough for
    `max_num_seqs` short contexts on a CPU."""
    max_num_batched_tokens: TokensOrNone = 0
    """Most tokens of one step of vLLM. 0 means 16,384 on a card of 70 GiB or more, else 8,192; on a CPU it is at least
    a whole context."""
    enforce_eager: bool = False
    """Run vLLM without CUDA graphs: it starts sooner and takes less memory, but decodes more slowly."""
    sleep: Literal["auto"] | bool = "auto"
    """Whether the engine gives its memory back while the policy is updated. `auto`: vLLM on CUDA does, unless
    `scale.max_staleness` lets trees grow meanwhile."""
    lora: Literal["auto", "adapter", "merged"] = "auto"
    """How the engine gets adapters that are trained. `adapter` keeps them apart from its weights; `merged` adds
    them to these, where bfloat16 rounds small changes away. `auto` is `adapter`, unless the engine computes in float32
    or cannot keep them apart."""
