"""A causal LM class of transformers -> configurations of it that are tiny, in the variants that it knows."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 48
WINDOW = 5
"""Tokens that a layer with a window sees: shorter than the paths of the survey's forest."""

ORIGINAL = 16
"""Positions that a model with scaled rotary positions was trained on: some paths are shorter, most are longer."""

LAYERS, HEADS, KEY_HEADS, HEAD_SIZE, HIDDEN, EXPERTS = 2, 4, 2, 8, 32, 4
INNER = 48

GROUPS: tuple[tuple[int, str], ...] = (
    (
        VOCABULARY,
        "vocab_size vocab_size_per_layer_input emb_vocab_size",
    ),
    (
        HIDDEN,
        "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim input_embedding_size emb_dim kv_channels"
        " output_embedding_size backbone_hidden_size intermediate_size_mlp dim_model_base router_hidden_size lru_width",
    ),
    (
        INNER,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size d_inner dff dim_ff"
        " feed_forward_size dense_intermediate_size",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_decoder_layers"
        " num_encoder_layers",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads"
        " num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads linear_num_value_heads"
        " linear_num_heads mamba_n_heads mamba_num_heads n_mamba_heads",
    ),
    (
        KEY_HEADS,
        "num_key_value_heads linear_num_key_heads swa_num_key_value_heads num_global_key_value_heads",
    ),
    (
        HEAD_SIZE,
        "head_dim attention_head_size qk_rope_head_dim qk_nope_head_dim global_head_dim linear_key_head_dim"
        " linear_value_head_dim swa_head_dim rotary_dim dim_head v_head_dim linear_head_dim swa_v_head_dim"
        " index_head_dim",
    ),
    (
        16,
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size kv_lora_rank q_lora_rank"
        " moe_shared_expert_intermediate_size shared_intermediate_size hidden_size_per_layer_input o_lora_rank"
        " time_step_rank moe_latent_size mamba_head_dim mamba_headdim",
    ),
    (
        8,
        "state_size ssm_state_size mamba_d_state mamba_state_dim index_topk laurel_rank",
    ),
    (
        EXPERTS,
        "num_experts num_local_experts n_routed_experts moe_num_experts mamba_d_conv conv_kernel",
    ),
    (
        2,
        "num_experts_per_tok top_k moe_topk moe_k num_experts_per_token index_n_heads num_selected_experts",
    ),
    (
        1,
        "n_group topk_group first_k_dense_replace n_shared_experts num_shared_experts"
        " mamba_n_groups n_groups moe_layer_start_index",
    ),
    (
        256,
        "max_position_embeddings n_positions max_seq_len n_ctx context_length max_target_positions"
        " max_source_positions",
    ),
)
SIZES = {name: size for size, names in GROUPS for name in names.split()}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

MIXED = ("sliding_attention", "full_attention")
ROPE = {"rope_type": "default", "rope_theta": 1e4}
SHARING = {"num_hidden_layers": 4, "layer_types": [*MIXED, *MIXED], "num_kv_shared_layers": 2}
"""The last two layers attend to the keys of the first two."""

OWN: dict[str, dict[str, Any]] = {
    "gemma4_text": SHARING,
    "gemma4_unified_text": SHARING,
    "gemma4_assistant": {"text_config": "gemma4_text"},
    "gemma4_unified_assistant": {"text_config": "gemma4_unified_text"},
    "cohere_compass_text": {"layer_types": list(MIXED), "rope_parameters": dict.fromkeys(MIXED, ROPE)},
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["linear_attention", "full_attention"]},
    "mamba2": {"head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "got_ocr2": {"text_config": "qwen2"},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "gemma3n_text": SHARING,
    "doge": {"keep_window_size": 4},
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layer_types": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beside or instead of the sizes above, by its `model_type`; a text model may be named."""

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {"original_max_position_embeddings": ORIGINAL, "short_mscale": 1.0, "long_mscale": 1.2},
}


def families() -> list[str]:
    """Return the model types that transformers has a causal LM class for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def class_name(family: str) -> str:
    """Return the causal LM class of a family."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    return name if isinstance(name, str) else name[0]


def variants(family: str, ropes: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the family's variants: a name, and what its configuration changes."""
    defaults = _defaults(CONFIG_MAPPING[family])
    yield "", {}
    if flipped := _flipped(defaults):
        yield "biases and tying flipped", flipped
    if "use_sliding_window" in defaults or ("sliding_window" in defaults and not defaults["sliding_window"]):
        yield "window", {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": list(MIXED)}
    if "is_decoder" in defaults and not defaults["is_decoder"]:
        yield "is_decoder", {"is_decoder": True}
    if ropes and "rope_parameters" in defaults:
        for kind, parameters in ROPES.items():
            rope = {"rope_type": kind, "rope_theta": 1e4} | parameters
            yield f"{kind} positions", {"rope_parameters": rope, "original_max_position_embeddings": ORIGINAL}


def tiny_config(family: str, changes: dict[str, Any]) -> PreTrainedConfig:
    """Build a tiny configuration; raises whatever the class raises where its sizes do not go together."""
    config_class = CONFIG_MAPPING[family]
    arguments = _tiny_arguments(config_class, family)
    known = _defaults(config_class)
    arguments |= {name: value for name, value in changes.items() if name in known}
    if arguments.get("rope_parameters", {}).get("rope_type") == "longrope":
        size = len(_rotary_sizes(config_class(**_without_rope(arguments))))
        short = [1.0 + 0.1 * place for place in range(size)]
        arguments["rope_parameters"] |= {"short_factor": short, "long_factor": [4 * factor for factor in short]}
    config: PreTrainedConfig = config_class(**arguments)
    return config


def _tiny_arguments(config_class: Any, family: str) -> dict[str, Any]:
    defaults = _defaults(config_class)
    arguments = {name: SIZES[name] for name in defaults if name in SIZES and defaults[name] is not False}
    arguments |= {name: value for name, value in SPECIAL.items() if name in defaults}
    if defaults.get("sliding_window"):
        arguments["sliding_window"] = WINDOW
    if "kv_lora_rank" in defaults:
        arguments["num_key_value_heads"] = HEADS
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if name in defaults and hasattr(part, "__dataclass_fields__"):
            arguments[name] = _tiny_arguments(part, getattr(part, "model_type", ""))
    arguments |= OWN.get(family, {})
    if isinstance(text := arguments.get("text_config"), str):
        arguments["text_config"] = _tiny_arguments(CONFIG_MAPPING[text], text) | {"model_type": text}
    return arguments


def _defaults(config_class: Any) -> dict[str, Any]:
    """Return the fields of a configuration with their defaults, those of all models left out."""
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def _flipped(defaults: dict[str, Any]) -> dict[str, Any]:
    names = ("attention_bias", "mlp_bias", "qkv_bias", "use_bias", "tie_word_embeddings")
    return {name: not defaults[name] for name in names if isinstance(defaults.get(name), bool)}


def _without_rope(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "rope_parameters"}


def _rotary_sizes(config: Any) -> range:
    """As many numbers as the model has rotary frequencies."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    return range(int(size * share) // 2)
