"""Queries, keys, values of a depth-first forest -> attention output: each token sees its path and nothing else.

A plan is what one forward knows of its forest; the attention paths make one each. It travels to every attention layer
as the keyword `tree_plan` of the model's forward and is called there instead of the library's attention. Where the
library would make a layer's mask, that layer's sliding window is noted, counted in depth: some models tell it to the
mask alone.

Shapes, beside the legend of `types`: H query heads, K key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "treegrpo_tree"
"""Under this name the library knows `tree_attention`."""

FOREIGN = ("softcap", "s_aux", "position_bias", "indices", "block_indices")
"""Keywords by which the library's models cap scores, add sinks or biases, or choose keys."""


class TreeUnsupportedError(Exception):
    """The model's attention cannot be computed on a tree; the message says why."""


@dataclass(frozen=True, slots=True)
class LayerMask:
    """What the library's mask of a layer would be: causal, within `window` tokens where there is one."""

    window: int | None


def layer_mask(*, local_size: int | None = None, use_vmap: bool = False, **kwargs: Any) -> LayerMask:
    """Note a layer's window, in the signature of the library's mask functions.

    Raises TreeUnsupportedError where the model adds to the causal mask, or takes from it, in a way of its own.
    """
    if use_vmap or kwargs.get("allow_is_bidirectional_skip") is not None:
        raise TreeUnsupportedError("its masks are more than causal")
    return LayerMask(local_size)


class Plan(Protocol):
    """How one forward attends; `num_calls` counts the layers that asked."""

    num_calls: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """query [1, H, U, D], key and value [1, K, U, D] -> [1, U, H, D]; a window bounds how far a token sees."""


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LayerMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    tree_plan: Plan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as `tree_plan` says, in the signature of the library's attention functions.

    Raises TreeUnsupportedError for what plans do not compute: dropout, masks of the model's own, capped scores, sinks,
    biases, a choice of keys.
    """
    if tree_plan is None:
        raise TreeUnsupportedError(f"{type(module).__name__} does not receive its model's keyword arguments")
    foreign = [name for name in FOREIGN if kwargs.get(name) is not None]
    own_mask = attention_mask is not None and not isinstance(attention_mask, LayerMask)
    if foreign or dropout or own_mask or kwargs.get("is_causal") is False:
        what = ", ".join(foreign) or ("dropout" if dropout else "a mask of its own")
        raise TreeUnsupportedError(f"{type(module).__name__} attends with {what}")
    size, value_size = query.shape[-1], value.shape[-1]
    if value_size > size:
        raise TreeUnsupportedError(f"{type(module).__name__} has values of {value_size} beside keys of {size}")
    tree_plan.num_calls += 1
    scale = size**-0.5 if scaling is None else scaling
    if value_size < size:  # latent attention has two sizes, the kernels want one
        value = functional.pad(value, (0, size - value_size))
    window = attention_mask.window if isinstance(attention_mask, LayerMask) else sliding_window
    return tree_plan.attend(query, key, value, scale, window, module.layer_idx)[..., :value_size], None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, layer_mask)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast does for the library's attention: norms and rotations leave float32 beside bfloat16."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)
