"""Hidden states -> log-probabilities of the sampled tokens, and their gradient, chunk by chunk.

The logits of all predictors at once would be the largest tensor of a training step. Here a `Sizes.chunk` of them
is alive: a chunk of predictors is projected, turned in place into log-probabilities and then into the gradient of
the loss, which goes on at once into the gradients of hidden states and weight. With z = logits / temperature,
p = softmax(z), H the entropy of p, and y a target:

    d log p_y / dz = onehot(y) - p             dH / dz = -p (log p + H)

Hidden states and weight are taken in the dtype of the hidden states, or in autocast's where that is on. Whatever it
is, their products are kept in float32 (float64 for float64): see `products`.

Liger's fused linear GRPO loss and torch's `linear_cross_entropy` read one target a hidden state and know neither a
turn shared by several leaves, nor a ratio over a turn, nor the gradient of the entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli.train.products import project, propagate, sizes

LEAST = -1e4
"""Stands for a log-probability of -inf where that is multiplied by its probability: exp of both is exactly 0."""

Which: TypeAlias = slice | Tensor
"""Some of the targets: consecutive ones, or their numbers, int64 and ascending."""

Objective: TypeAlias = Callable[[Tensor, Tensor, Which], Tensor]
"""(logprobs [q], entropy [q], which of the targets these are) -> loss, 0-dimensional, to be minimised."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """weight [V, hidden], bias [V]: the policy is softmax(logits / temperature).

    The logits are h W^T + b, or softcap · tanh of that / softcap.
    """

    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HeadGradients:
    """What the head's gradients are added to in place: weight [V, hidden] and bias [V], None where frozen."""

    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HeadResult:
    """loss: 0-dimensional · logprobs [Q] of the targets and entropy [Q] of their distributions, in nats.

    hidden_grad [P, hidden], in the dtype of the hidden states.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    hidden_grad: Tensor


@torch.no_grad()
def log_probs(
    head: Head,
    hidden: Tensor,
    target_row: Tensor,
    target_ids: Tensor,
    *,
    host_row: NDArray[np.int64] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target [Q] and the entropy at each predictor [P], in nats, without a graph.

    hidden [P, hidden] · target_row [Q] int64, ascending: the predictor of each target · target_ids [Q] int64. Several
    targets may have one predictor, as where a tree branches. `host_row` is `target_row` once more: without it a batch
    of several chunks asks the device for it, and waits.
    """
    head, hidden = _for_products(head, hidden)
    parts = []
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, which in _chunks(head, hidden, target_row, host_row):
            logits = _project(head, hidden[rows])
            entropy = _to_log_probs(logits)
            parts.append((logits[target_row[which] - rows.start, target_ids[which]], entropy))
            del logits  # or two chunks would be alive
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


@torch.no_grad()
def backward(
    head: Head,
    hidden: Tensor,
    target_row: Tensor,
    target_ids: Tensor,
    objective: Objective,
    grads: HeadGradients,
    *,
    is_local: bool,
    host_row: NDArray[np.int64] | None = None,
) -> HeadResult:
    """Return the loss and its gradient at the hidden states; add the head's own gradients to `grads`.

    Shapes as in `log_probs`. `is_local`: the loss is a sum over slices of the targets, each of which the objective
    can compute alone; then one pass does, with three matrix products. Otherwise the log-probabilities come first, and
    the pass follows the objective's slope at them.
    """
    dtype = hidden.dtype
    head, hidden = _for_products(head, hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        loss = None
        if not is_local:
            logprobs, entropy = log_probs(head, hidden, target_row, target_ids, host_row=host_row)
            loss, objective = linearise(objective, logprobs, entropy[target_row])
        parts = []
        for rows, which in _chunks(head, hidden, target_row, host_row):
            row, ids = target_row[which] - rows.start, target_ids[which]
            parts.append(_backward(head, hidden[rows], row, ids, objective, which, grads))
    return HeadResult(
        torch.stack([part.loss for part in parts]).sum() if loss is None else loss,
        torch.cat([part.logprobs for part in parts]),
        torch.cat([part.entropy for part in parts]),
        torch.cat([part.hidden_grad for part in parts]).to(dtype),
    )


def nothing(logprobs: Tensor, entropy: Tensor, which: Which) -> Tensor:
    """The objective whose gradient is 0 everywhere, of those who compute that others need not wait."""
    return (torch.zeros_like(logprobs) * logprobs).sum()


def linearise(objective: Objective, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Objective]:
    """Return the loss of all targets, and a local objective whose gradient is that of `objective` at these values."""
    loss, by_logprob, by_entropy = slopes(objective, logprobs, entropy, slice(0, len(logprobs)))
    return loss, linear(by_logprob, by_entropy)


def linear(by_logprob: Tensor, by_entropy: Tensor | None) -> Objective:
    """Return the local objective of these slopes at the targets, [Q]."""

    def objective(logprobs: Tensor, entropy: Tensor, which: Which) -> Tensor:
        value = (by_logprob[which] * logprobs).sum()
        return value if by_entropy is None else value + (by_entropy[which] * entropy).sum()

    return objective


def slopes(
    objective: Objective, logprobs: Tensor, entropy: Tensor, which: Which
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the loss and its gradients by log-probability and by entropy, None where it does not read the entropy."""
    leaves = (logprobs.detach().requires_grad_(), entropy.detach().requires_grad_())
    with torch.enable_grad():
        loss = objective(*leaves, which)
    by_logprob, by_entropy = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach(), torch.zeros_like(logprobs) if by_logprob is None else by_logprob, by_entropy


def _backward(
    head: Head,
    states: Tensor,
    row: Tensor,
    ids: Tensor,
    objective: Objective,
    which: slice,
    grads: HeadGradients,
) -> HeadResult:
    """The same for one chunk."""
    logits = _project(head, states)
    cap_slope = None if head.softcap is None else 1 - (logits * (head.temperature / head.softcap)) ** 2
    entropy = _to_log_probs(logits)
    logprobs = logits[row, ids]
    loss, by_logprob, by_entropy = slopes(objective, logprobs, entropy[row], which)
    by_row = torch.zeros_like(entropy).index_add_(0, row, by_logprob)
    by_row_entropy = None if by_entropy is None else torch.zeros_like(entropy).index_add_(0, row, by_entropy)
    _to_gradient(logits, entropy, by_row, by_row_entropy)
    logits.index_put_((row, ids), by_logprob, accumulate=True)
    if cap_slope is not None:
        logits *= cap_slope
    if head.temperature != 1:
        logits /= head.temperature
    return HeadResult(loss, logprobs, entropy[row], _propagate(head, states, logits, grads))


def _for_products(head: Head, hidden: Tensor) -> tuple[Head, Tensor]:
    """Head and hidden states in the dtype that the products read."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    return replace(head, weight=head.weight.to(dtype), bias=bias), hidden.to(dtype)


def _chunks(
    head: Head, hidden: Tensor, target_row: Tensor, host_row: NDArray[np.int64] | None
) -> Iterator[tuple[slice, slice]]:
    """Chunks of predictors, of about equal size, and the targets that are read from each; at least one."""
    chunk = sizes(hidden.device).chunk
    num_chunks = max(1, min(len(hidden), math.ceil(len(hidden) * len(head.weight) / chunk)))
    if num_chunks == 1:
        yield slice(0, len(hidden)), slice(0, len(target_row))
        return
    starts = [len(hidden) * number // num_chunks for number in range(num_chunks + 1)]
    bounds = np.searchsorted(target_row.cpu().numpy() if host_row is None else host_row, starts).tolist()
    for number in range(num_chunks):
        yield slice(*starts[number : number + 2]), slice(*bounds[number : number + 2])


def _blocks(logits: Tensor) -> Iterator[slice]:
    size = max(1, sizes(logits.device).block // logits.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits), size))


def _project(head: Head, states: Tensor) -> Tensor:
    """logits / temperature [p, V], in float32 or wider."""
    logits = project(states, head.weight, head.bias)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits if head.temperature == 1 else logits.div_(head.temperature)


def _to_log_probs(logits: Tensor) -> Tensor:
    """Replace logits by log-probabilities; return the entropies [p]."""
    entropy = logits.new_empty(len(logits))
    for block in _blocks(logits):
        log_p = torch.log_softmax(logits[block], dim=-1)
        logits[block] = log_p
        entropy[block] = -(log_p.exp() * log_p.clamp_(min=LEAST)).sum(dim=-1)
    return entropy


def _to_gradient(log_p: Tensor, entropy: Tensor, by_logprob: Tensor, by_entropy: Tensor | None) -> None:
    """Replace log-probabilities by the gradient at z, but for its part at the targets; the others [p]."""
    for block in _blocks(log_p):
        p, slope = log_p[block].exp(), by_logprob[block, None]
        if by_entropy is not None:
            surprise = log_p[block].clamp_(min=LEAST).add_(entropy[block, None])
            slope = surprise.mul_(by_entropy[block, None]).add_(slope)
        torch.mul(p, -slope, out=log_p[block])


def _propagate(head: Head, states: Tensor, logits_grad: Tensor, grads: HeadGradients) -> Tensor:
    """Add to the head's gradients; return the one at the hidden states, in float32 or wider."""
    if grads.bias is not None:
        grads.bias.add_(logits_grad.sum(dim=0))
    return propagate(states, head.weight, logits_grad, grads.weight)
