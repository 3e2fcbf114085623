"""A plain causal LM -> the same with adapters beside its layers, and with a float32 head: what engines have, here."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from treegrpo_cli.models.weights import Adapter


class AdaptedLayers:
    """The layers of `model` that `adapter` names; they give what they gave until `load` is called."""

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._scale = 1.0
        self._like = next(model.parameters())
        modules = dict(model.named_modules())
        for name in adapter.layers:
            modules[name].register_forward_hook(partial(self._add, name))

    def load(self, adapter: Adapter) -> None:
        """Take another adapter of the same layers, rounded to what the model computes in."""
        self._scale = adapter.scale
        self._pairs = {
            name: (down.detach().to(self._like, copy=True), up.detach().to(self._like, copy=True))
            for name, (down, up) in adapter.layers.items()
        }

    def _add(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if name not in self._pairs:
            return None
        down, up = self._pairs[name]
        return output + functional.linear(functional.linear(inputs[0], down), up) * self._scale


def compute_head_in_float32(model: Any) -> None:
    """Let a model of less than float32 give logits that were never rounded: products and sums in float32."""
    head = model.get_output_embeddings()
    if head is not None and head.weight.dtype != torch.float32:
        head.forward = partial(_float32_linear, head)


def _float32_linear(head: Any, states: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.float()
    if states.is_cuda:
        flat = torch.mm(states.flatten(0, -2), head.weight.t(), out_dtype=torch.float32)
        logits: Tensor = flat.reshape(*states.shape[:-1], -1)
        return logits if bias is None else logits + bias
    return functional.linear(states.float(), head.weight.float(), bias)
