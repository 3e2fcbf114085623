"""The trained model -> its weights as engines take them, with adapters merged on the way, and its adapters alone.

Of weights in parts on several ranks each tensor is gathered when its turn comes: all ranks go through them together,
and whoever wants none of them lets each go again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from treegrpo_cli.config import ModelConfig
from treegrpo_cli.models.weights import Adapter, Weights
from treegrpo_cli.train.shards import whole


def merged_weights(model: Any, dtype: torch.dtype) -> Weights:
    """Return the plain model's `state_dict()`, tied names included; a tensor of it may share the weights' memory."""
    own = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if not _is_of_an_adapter(name)
    }
    shapes = {name: tensor.shape for name, tensor in own.items()}
    dtypes = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in own.items()}
    return Weights(shapes, lambda: _merged(model, dtype), dtypes)


def trained_adapter(model: Any, settings: ModelConfig) -> Adapter:
    """Return the model's adapter, whose tensors are those that the optimizer moves, where they are not in parts."""
    from peft.tuners.lora import LoraLayer

    layers = {
        name: (whole(layer.lora_A["default"].weight), whole(layer.lora_B["default"].weight))
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    return Adapter(settings.lora_rank, settings.lora_alpha, layers)


@torch.no_grad()
def _merged(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    modules = dict(model.named_modules())
    for name, tensor in model.state_dict().items():
        if _is_of_an_adapter(name):
            continue
        module, _, parameter = name.rpartition(".base_layer.")
        if module and parameter == "weight":
            tensor = tensor.float() + modules[module].get_delta_weight("default").detach()
        yield (
            name.replace(".base_layer.", "."),
            whole(tensor.to(dtype) if tensor.is_floating_point() else tensor),
        )


def _is_of_an_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))
