"""A causal LM + the longest context of a run -> the same positions in every forward, and in the engine.

The library recomputes some rotary frequencies by the longest row of a batch: a row's log-probabilities would depend
on what is computed beside it. vLLM chooses once, by the longest context that it holds; so does this module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

PAIRS = (("short_factor", "long_factor"), ("short_mscale", "long_mscale"))
"""What longrope has for contexts of the original length, and for longer ones."""


def fix_positions(model: nn.Module, max_context_tokens: int) -> None:
    """Let rotary positions no longer depend on the rows of a batch; the model's configuration stays as it is.

    Of longrope's two sets of factors, contexts that may exceed the original length take the long one, however short a
    row is: as vLLM does. Dynamic frequencies change beyond `max_position_embeddings` alone, where no context goes.
    """
    for module in _rotary_modules(model):
        module.config = copy.deepcopy(module.config)
        if isinstance(module.rope_type, dict):
            for layer_type in module.rope_type:
                _fix(module, layer_type, max_context_tokens)
        else:
            _fix(module, None, max_context_tokens)


def moving_positions(model: nn.Module) -> list[str]:
    """Return the kinds of rotary positions that still depend on the longest row of a batch, sorted."""
    found = set()
    for module in _rotary_modules(model):
        types = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
        for layer_type, kind in types.items():
            table = _table(module, layer_type)
            two = any(short in table and table[short] != table[long] for short, long in PAIRS)
            if "dynamic" in kind or (kind == "longrope" and two):
                found.add(kind)
    return sorted(found)


def _rotary_modules(model: nn.Module) -> Iterator[Any]:
    """Yield modules that compute positions by a `rope_type`, or by one for each type of layers."""
    for module in model.modules():
        if hasattr(module, "rope_type") and getattr(module.config, "rope_parameters", None):
            yield module


def _table(module: Any, layer_type: str | None) -> dict[str, Any]:
    parameters = module.config.rope_parameters
    table: dict[str, Any] = parameters if layer_type is None else parameters[layer_type]
    return table


def _fix(module: Any, layer_type: str | None, max_context_tokens: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    if "dynamic" in kind:
        if layer_type is None:
            module.rope_type = "default"
        else:
            module.rope_type = module.rope_type | {layer_type: "default"}
    if kind != "longrope":
        return
    table = _table(module, layer_type)
    is_long = max_context_tokens > table["original_max_position_embeddings"]
    for short, long in PAIRS:
        if short in table:
            table[short] = table[long] = table[long if is_long else short]
    prefix = "" if layer_type is None else f"{layer_type}_"
    device = getattr(module, f"{prefix}inv_freq").device
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](module.config, device, layer_type=layer_type)
    setattr(module, f"{prefix}inv_freq", frequencies)
    setattr(module, f"{prefix}original_inv_freq", frequencies.clone())
