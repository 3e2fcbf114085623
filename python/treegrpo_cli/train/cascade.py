"""Queries, keys, values of a forest -> attention on a CPU with each key read where it lies.

A run attends to itself causally, and what hangs below a shared segment to that segment in full; parts are merged by
their log-sum-exp. As many pairs as `visibility.visible` has, and not one more.

Shapes, beside the legend of `types`: H query heads, K key heads, G = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Cascade(torch.autograd.Function):
    """Causal attention within each run, full attention to each shared segment, merged by log-sum-exp.

    The CPU kernel reads a head dimension of stride 0, so that the G query heads of a key head share it uncopied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        runs: Sequence[tuple[int, int]],
        segments: Sequence[tuple[int, int, int, int]],
        scale: float,
    ) -> Tensor:
        q, k, v = _grouped(query, key, value)
        wide = torch.promote_types(q.dtype, torch.float32)
        flat = q.new_empty((q.shape[2], q.shape[0], q.shape[1], q.shape[3]), dtype=wide)
        output = flat.permute(1, 2, 0, 3)
        normaliser = q.new_empty(q.shape[:3], dtype=wide)
        for start, end in runs:
            part, lse = _flash(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], True, scale)
            output[:, :, start:end] = part
            normaliser[:, :, start:end] = lse
        for key_start, key_end, start, end in segments:
            part, lse = _flash(q[:, :, start:end], k[:, :, key_start:key_end], v[:, :, key_start:key_end], False, scale)
            _merge(output[:, :, start:end], normaliser[:, :, start:end], part, lse)
        output = output.to(q.dtype)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.runs, ctx.segments, ctx.scale = runs, segments, scale
        return output.permute(2, 0, 1, 3).reshape(1, q.shape[2], -1, q.shape[3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, output, normaliser = ctx.saved_tensors
        q, k, v = _grouped(query, key, value)
        grad = grads[0].reshape(-1, *q.shape[:2], q.shape[3]).permute(1, 2, 0, 3)
        grad_query = torch.empty_like(q, memory_format=torch.contiguous_format)
        grad_key, grad_value = (torch.empty_like(key[0]) for _ in range(2))

        def part(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            into = (grad[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys])
            dq, dk, dv = _flash_backward(*into, output[:, :, queries], normaliser[:, :, queries], causal, ctx.scale)
            return dq, dk.sum(dim=1), dv.sum(dim=1)

        for start, end in ctx.runs:
            own = slice(start, end)
            grad_query[:, :, own], grad_key[:, own], grad_value[:, own] = part(own, own, True)
        for key_start, key_end, start, end in ctx.segments:
            keys, queries = slice(key_start, key_end), slice(start, end)
            for total, more in zip(
                (grad_query[:, :, queries], grad_key[:, keys], grad_value[:, keys]),
                part(queries, keys, False),
                strict=True,
            ):
                total += more
        return grad_query.flatten(0, 1)[None], grad_key[None], grad_value[None], None, None, None


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[1, H or K, U, D] -> three of [K, G, U, D]; keys and values are views of stride 0 over G."""
    num_key_heads = key.shape[1]
    group = query.shape[1] // num_key_heads
    shape = (num_key_heads, group, -1, -1)
    heads = query.view(num_key_heads, group, *query.shape[2:])
    return heads, key[0][:, None].expand(shape), value[0][:, None].expand(shape)


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, [.., q, D] and [.., q], by the kernel behind the library's own attention."""
    function = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = function(query, key, value, 0.0, causal, scale=scale)
    return output, lse


def _flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through one part; `output` and `lse` are those of all parts together."""
    function = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grads: tuple[Tensor, Tensor, Tensor] = function(grad, query, key, value, output, lse, 0.0, causal, scale=scale)
    return grads


def _merge(output: Tensor, normaliser: Tensor, part: Tensor, lse: Tensor) -> None:
    """Add the keys of a part to a softmax already normalised: both are weighed by their share of the sum."""
    share = torch.sigmoid(lse - normaliser)
    output.lerp_(part.to(output.dtype), share[..., None])
    normaliser.copy_(torch.logaddexp(normaliser, lse))
