"""Queries, keys, values of a depth-first forest -> attention output: each token sees its path and nothing else.

A plan is what one forward knows of its forest. It travels to every attention layer as the keyword `tree_plan`
of the model's forward and is called there instead of the library's attention; the library then makes no mask,
and a layer's sliding window is the window of that very layer, counted in depth.

    RunsPlan    on CPU each key is read where it lies: a run attends to itself causally, and what hangs below a
                shared segment to that segment in full; parts are merged by their log-sum-exp. As many pairs as
                `visible` has and not one more. On CUDA one call of variable lengths over gathered keys.
    FlexPlan    FlexAttention with a block mask; CUDA only, its backward has no CPU kernel.
    DensePlan   a mask of U x U: slow, for tests, and where nothing else runs.

Shapes, beside the legend of `types`: H query heads, K key heads, G = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from treegrpo_cli.types import TrainBatch

NAME = "treegrpo_tree"
"""Under this name the library knows `tree_attention`."""

VARLEN_DTYPES = (torch.bfloat16, torch.float16)
"""What the CUDA kernel of variable lengths computes in."""

FOREIGN = ("softcap", "s_aux", "position_bias", "indices", "block_indices")
"""Keywords by which the library's models cap scores, add sinks or biases, or choose keys."""


class TreeUnsupportedError(Exception):
    """The model's attention cannot be computed on a tree; the message says why."""


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
    attention_mask: Tensor | None,
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
    if foreign or dropout or attention_mask is not None or kwargs.get("is_causal") is False:
        what = ", ".join(foreign) or ("dropout" if dropout else "a mask of its own")
        raise TreeUnsupportedError(f"{type(module).__name__} attends with {what}")
    size, value_size = query.shape[-1], value.shape[-1]
    if value_size > size:
        raise TreeUnsupportedError(f"{type(module).__name__} has values of {value_size} beside keys of {size}")
    tree_plan.num_calls += 1
    scale = size**-0.5 if scaling is None else scaling
    if value_size < size:  # latent attention has two sizes, the kernels want one
        value = functional.pad(value, (0, size - value_size))
    return tree_plan.attend(query, key, value, scale, sliding_window, module.layer_idx)[..., :value_size], None


AttentionInterface.register(NAME, tree_attention)


@dataclass
class RunsPlan:
    """The depth-first order cut into root-down runs, each attending to its ancestors and to itself."""

    batch: TrainBatch
    num_calls: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `Plan`."""
        query, key, value = _autocast(query, key, value)
        if window is not None and window >= self.batch.max_path_tokens:
            window = None
        if query.is_cuda:
            return self._varlen(query, key, value, scale, window)
        if window is not None:
            return self._windowed(query, key, value, scale, window)
        runs, segments = self.batch.runs, self.batch.segments
        return _Cascade.apply(query, key, value, runs, segments, scale)  # type: ignore[no-untyped-call, no-any-return]

    def _windowed(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
        """Each run against the end of its path that its first token sees."""
        outputs = []
        for (start, end), path in zip(self.batch.runs, self._paths, strict=True):
            seen = path[max(0, len(path) - (end - start) - window + 1) :]
            mask = lower_right_mask(query[:, :, start:end], len(seen), window)
            outputs.append(masked_attention(query[:, :, start:end], key[:, :, seen], value[:, :, seen], mask, scale))
        return torch.cat(outputs, dim=1)

    def _varlen(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """One call: run r's queries against its gathered path, causal at the lower right."""
        if query.dtype not in VARLEN_DTYPES:
            raise TreeUnsupportedError(f"attention of variable lengths computes in bfloat16, not in {query.dtype}")
        index, query_start, key_start, max_query, max_key = self._gathered
        output = varlen_attention(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1)[index],
            value[0].transpose(0, 1)[index],
            query_start,
            key_start,
            max_query,
            max_key,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
        )
        return output[None]

    @cached_property
    def _gathered(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """The path of each run as one index, where runs and paths begin, and the longest of each."""
        device = self.batch.token_ids.device
        paths = self._paths
        starts = [torch.tensor([0, *map(len, parts)]).cumsum(0, dtype=torch.int32) for parts in (self._runs(), paths)]
        longest = [max(map(len, parts)) for parts in (self._runs(), paths)]
        return torch.cat(paths).to(device), starts[0].to(device), starts[1].to(device), longest[0], longest[1]

    @cached_property
    def _paths(self) -> list[Tensor]:
        return run_paths(self.batch)

    def _runs(self) -> list[range]:
        return [range(start, end) for start, end in self.batch.runs]


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast does for the library's attention: norms and rotations leave float32 beside bfloat16."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def varlen_attention(*args: Any, **kwargs: Any) -> Tensor:
    """torch's attention of variable lengths, a thin layer over FlashAttention."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(*args, **kwargs)  # type: ignore[return-value]


def run_paths(batch: TrainBatch) -> list[Tensor]:
    """Return, for each run, the tokens from its root to its end: int64 on the CPU."""
    parent = batch.parent_token.cpu()
    paths: list[Tensor] = []
    run_of: dict[int, int] = {}
    for number, (start, end) in enumerate(batch.runs):
        above = int(parent[start])
        own = torch.arange(start, end)
        if above >= 0:
            outer = paths[run_of[above]]
            own = torch.cat([outer[: int(batch.positions[above]) + 1], own])
        paths.append(own)
        run_of.update(dict.fromkeys(range(start, end), number))
    return paths


class _Cascade(torch.autograd.Function):
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


@dataclass
class DensePlan:
    """Every pair of tokens under a mask: additive, since the library's slow attention misreads a boolean one."""

    batch: TrainBatch
    num_calls: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `Plan`."""
        tokens = torch.arange(self.batch.token_ids.shape[0], device=query.device)
        seen = visible(self.batch, window)(None, None, tokens[:, None], tokens[None])
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
        return masked_attention(query, key, value, mask, scale)


def lower_right_mask(query: Tensor, num_keys: int, window: int | None) -> Tensor:
    """The additive causal mask [q, k] of the last q of `num_keys` tokens, each of which sees `window` of them."""
    num_queries = query.shape[2]
    tokens = torch.arange(num_keys, device=query.device)
    distance = tokens[num_keys - num_queries :, None] - tokens
    unseen = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill_(unseen, float("-inf"))


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """[1, H, q, D], [1, K, k, D] and an additive mask [q, k] -> [1, q, H, D]."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)


@dataclass
class FlexPlan:
    """FlexAttention: blocks of keys that no query of a block sees are skipped."""

    batch: TrainBatch
    num_calls: int = 0
    _masks: dict[int | None, Any] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `Plan`."""
        from torch.nn.attention.flex_attention import create_block_mask

        if query.requires_grad and not query.is_cuda:
            raise TreeUnsupportedError(f"FlexAttention has no gradient on {query.device.type}")
        query, key, value = _autocast(query, key, value)
        if window not in self._masks:
            length = query.shape[2]
            mask = visible(self.batch, window)
            self._masks[window] = create_block_mask(mask, None, None, length, length, device=query.device)
        attention = compiled_flex_attention() if query.is_cuda else plain_flex_attention()
        output: Tensor = attention(query, key, value, block_mask=self._masks[window], scale=scale, enable_gqa=True)
        return output.transpose(1, 2)


def plain_flex_attention() -> Any:
    """torch's FlexAttention; its plain form is slow and has no backward on CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def compiled_flex_attention() -> Any:
    """FlexAttention compiled once for all lengths: without `dynamic` every new length compiles again."""
    return torch.compile(plain_flex_attention(), dynamic=True)


def visible(batch: TrainBatch, window: int | None) -> Any:
    """Return the rule `sees(batch, head, query, key)`: k <= q < subtree_end[k], and within the window of depths."""
    subtree_end, positions = batch.subtree_end, batch.positions

    def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        below = (key <= query) & (query < subtree_end[key])
        return below if window is None else below & (positions[query] - positions[key] < window)

    return sees


@dataclass
class EdgePlan:
    """One stretch of a tree without a branch, behind the keys and values of the stretches above it.

    `computed` holds each layer's keys and values with their graph, `lent` the same as leaves of the stretches
    below, which leave their gradients there.
    """

    above: EdgePlan | None
    num_calls: int = 0
    computed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lent: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `Plan`."""
        if layer not in self.computed:  # a checkpointed layer asks again while its gradient is computed
            self.computed[layer] = (key, value)
            self.lent[layer] = (
                key.detach().requires_grad_(key.requires_grad),
                value.detach().requires_grad_(value.requires_grad),
            )
        path = self._path()
        keys = torch.cat([*(edge.lent[layer][0] for edge in path), key], dim=2)
        values = torch.cat([*(edge.lent[layer][1] for edge in path), value], dim=2)
        mask = lower_right_mask(query, keys.shape[2], window)
        return masked_attention(query, keys, values, mask, scale)

    def _path(self) -> list[EdgePlan]:
        """The stretches above, from the root down."""
        path: list[EdgePlan] = []
        edge = self.above
        while edge is not None:
            path.append(edge)
            edge = edge.above
        return path[::-1]
