"""Family -> a tiny random model of it, and the means to compute with it in float64."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.utils.logging import disable_progress_bar
from treegrpo_cli.config import Config
from treegrpo_cli.train import trainer as trainer_module
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.self_check import Disagreement
from treegrpo_cli.train.trainer import Trainer

VOCABULARY = 48
WINDOW = 5
"""Tokens that a layer with a window sees: shorter than any path of the tests' forests."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # far from uniform, so that what a token sees matters
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED_WINDOWS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-window": Qwen2Config(**SIZES, **MIXED_WINDOWS, use_sliding_window=True),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, attention_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(**SIZES, **MIXED_WINDOWS, query_pre_attn_scalar=6),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
}

LATENT = SIZES | {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 12}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
LATENT |= {"n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}

OTHERS: dict[str, PreTrainedConfig] = {
    "gpt2, learned positions": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.25
    ),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "deepseek-v3, values narrower than keys": DeepseekV3Config(
        **{name: size for name, size in LATENT.items() if name != "head_dim"}
    ),
}
"""Models whose paths are compared with chains in float32 only."""

SCALED_HEADS: dict[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**SIZES, logits_scaling=3.0, embedding_multiplier=2.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
}
"""Models that cap or scale their logits."""

FOREIGN_ATTENTION: dict[str, PreTrainedConfig] = {
    "softcap": Gemma2Config(**SIZES),
    "s_aux": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}
"""Models whose attention no plan computes, by the keyword that says so."""


def save_model(config: PreTrainedConfig, path: Path, seed: int = 0) -> Path:
    """Write a random model; norms and biases, which start at one value, are drawn too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.2 * torch.randn_like(weight)
    disable_progress_bar()
    model.save_pretrained(path)
    return path


def make_trainer(model_dir: Path, path: str, loss: dict[str, Any], **sections: dict[str, Any]) -> Trainer:
    """Return a trainer of this attention path, whose self-check has been passed and whose gradient is not clipped.

    The reference of a KL is another policy than the one that is trained.
    """
    tables: dict[str, Any] = {
        "model": {"path": str(model_dir), "device": "cpu"},
        "loss": loss,
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1e9},
        "train": {"prompts_per_step": 16, "attention_path": path},
    }
    for name, table in sections.items():
        tables[name] = tables.get(name, {}) | table
    trainer = Trainer(Config.model_validate(tables))
    trainer.paths.checks.found = dict.fromkeys((path, "chains"), Disagreement(None, None, longest=256))
    if trainer.policy.reference is not None:
        torch.manual_seed(1)
        for weight in trainer.policy.reference.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return trainer


class Float64(TorchFunctionMode):
    """Computes in float64 what a model's code asks to be computed in float32: norms, rotations, softmax, routers."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def to_float64(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Let a trainer compute in float64, the loss's numbers too; the library's grouped experts know no float64."""
    for model in (trainer.policy.model, trainer.policy.reference):
        if model is not None:
            model.double()
            if hasattr(model.config, "num_experts"):
                model.set_experts_implementation("eager")
    monkeypatch.setattr(trainer_module, "to_batch", lambda micro, device: to_batch(micro, device, torch.float64))
    return trainer


def relative(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|."""
    return float((one.double() - other.double()).norm() / other.double().norm())
