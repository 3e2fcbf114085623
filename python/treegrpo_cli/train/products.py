"""Hidden states, the LM head's weight -> logits, and their gradient -> the gradients of both.

Matrices may be of bfloat16; their products are summed and kept in float32, for logits rounded to bfloat16 would move
log-probabilities by up to 2^-8 of the largest logit, and the sampler does not round them. On CUDA the gradient of the
logits is rounded to bfloat16 for the two products that it goes into, which the tensor cores ask for; elsewhere it is
not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many numbers the head holds at a time, each of 4 bytes in float32.

    chunk: logits that are alive; with fewer the matrix products slow down · block: logits that an elementwise
    operation takes at once, of which up to three copies live beside the chunk, or weights that are widened at once.
    """

    chunk: int
    block: int


SIZES = {"cpu": Sizes(chunk=3 << 24, block=1 << 21), "cuda": Sizes(chunk=1 << 27, block=1 << 25)}
"""By device type. A block of 8 MiB stays in a CPU's cache. A GPU has none to stay in, and each operation costs it a
launch of microseconds: blocks of 128 MiB outlast that many times over, four to a chunk of 512 MiB."""

ALIGNED = 64
"""Numbers at whose multiples a piece of a matrix begins and ends, where it has so many."""


def sizes(device: torch.device) -> Sizes:
    """Return the sizes that suit a device; one that is not known counts as a GPU."""
    return SIZES.get(device.type, SIZES["cuda"])


def project(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the logits [p, V] of hidden states [p, hidden], in float32 or wider."""
    if not _is_rounded(states):
        return states @ weight.t() if bias is None else torch.addmm(bias, states, weight.t())
    if _has_wide_products(states):
        logits = wide_product(states, weight.t())
    else:
        logits, wide = states.new_empty((len(states), len(weight)), dtype=torch.float32), states.float()
        for piece in _pieces(weight):
            logits[:, piece] = wide @ weight[piece].float().t()
    return logits if bias is None else logits.add_(bias)


def propagate(states: Tensor, weight: Tensor, logits_grad: Tensor, weight_grad: Tensor | None) -> Tensor:
    """Add to the weight's gradient, where it has one; return that of the hidden states, in float32 or wider."""
    if not _is_rounded(states):
        if weight_grad is not None:
            _add_product(weight_grad, logits_grad.t(), states)
        return logits_grad @ weight
    if _has_wide_products(states):
        return _propagate_rounded(states, weight, logits_grad.to(states.dtype), weight_grad)
    wide, hidden_grad = states.float(), torch.zeros(states.shape, device=states.device)
    for piece in _pieces(weight):
        hidden_grad.addmm_(logits_grad[:, piece], weight[piece].float())
        if weight_grad is not None:
            _add_product(weight_grad[piece], logits_grad[:, piece].t(), wide)
    return hidden_grad


def _propagate_rounded(states: Tensor, weight: Tensor, logits_grad: Tensor, weight_grad: Tensor | None) -> Tensor:
    """The same from bfloat16 alone, on CUDA."""
    if weight_grad is not None:
        for piece in _pieces(weight):
            weight_grad[piece] += wide_product(logits_grad[:, piece].t(), states)
    return wide_product(logits_grad, weight)


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add [n, k] @ [k, m] in place; in one kernel where the dtypes allow it."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


def _pieces(weight: Tensor) -> Iterator[slice]:
    """Pieces of the vocabulary: what is made of a weight beside it stays small. Tensor cores want them aligned."""
    size = max(1, sizes(weight.device).block // weight.shape[1])
    size -= size % ALIGNED if size > ALIGNED else 0
    return (slice(start, start + size) for start in range(0, len(weight), size))


def _is_rounded(tensor: Tensor) -> bool:
    """Whether a product in its dtype would be rounded to fewer bits than float32 has."""
    return tensor.dtype.itemsize < 4


def _has_wide_products(tensor: Tensor) -> bool:
    """Whether torch multiplies its dtype into float32: the kernel of `wide_product` is there for CUDA alone."""
    return tensor.is_cuda


def wide_product(one: Tensor, other: Tensor) -> Tensor:
    """[n, k] @ [k, m] of bfloat16 or float16 on CUDA -> float32: summed there, and not rounded at the end."""
    return torch.mm(one, other, out_dtype=torch.float32)
