"""A tree too large for one forward -> its loss and gradient, one stretch at a time, with the memory of one path.

Stretches are forwarded in depth-first order behind the keys and values of those above them, each token once. When
all below a stretch is done its own backward pass runs: from its hidden states, and from the gradients that the
stretches below have left at its keys and values. At any time only the stretches of one path hold a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from treegrpo_cli.train import head as heads
from treegrpo_cli.train.forward import Decoder
from treegrpo_cli.train.head import Head, HeadGradients, HeadResult, Objective
from treegrpo_cli.train.tree_attention import EdgePlan
from treegrpo_cli.types import TrainBatch


@dataclass
class _Stretch:
    """A forwarded stretch: its hidden states that are read, and which predictors and targets these are."""

    number: int
    plan: EdgePlan
    states: Tensor
    predictors: slice
    targets: slice


def log_probs(decoder: Decoder, head: Head, batch: TrainBatch) -> Tensor:
    """Return the log-probabilities of the targets, [Q], without a graph."""
    with torch.no_grad():
        parts = [
            heads.log_probs(head, stretch.states, *_targets(batch, stretch))[0]
            for stretch in _forwards(decoder, batch, None, lambda _: None)
        ]
    return torch.cat(parts)


def backward(
    decoder: Decoder,
    head: Head,
    batch: TrainBatch,
    objective: Objective,
    grads: HeadGradients,
    *,
    is_local: bool,
    embeds: Tensor | None = None,
) -> HeadResult:
    """Add the batch's gradient to the weights, to `grads` and to `embeds`; return what `head.backward` returns.

    A ratio over whole turns is known once the turn's last stretch is forwarded, and that is before any of its
    stretches runs backward: until then only the log-probabilities of the others are kept.
    """
    num_targets = len(batch.target_ids)
    dtype = torch.promote_types(batch.weights.dtype, torch.float32)
    known = [torch.zeros(num_targets, dtype=dtype, device=batch.weights.device) for _ in range(2)]

    def finish(stretch: _Stretch) -> None:
        targets = stretch.targets
        local = _shifted(objective if is_local else heads.linearise(objective, *known)[1], targets.start)
        result = heads.backward(head, stretch.states.detach(), *_targets(batch, stretch), local, grads, is_local=True)
        known[0][targets], known[1][targets] = result.logprobs, result.entropy
        _run_backward(stretch, result.hidden_grad)

    for stretch in _forwards(decoder, batch, embeds, finish):
        if not is_local:
            logprobs, entropy = heads.log_probs(head, stretch.states.detach(), *_targets(batch, stretch))
            known[0][stretch.targets] = logprobs
            known[1][stretch.targets] = entropy[_targets(batch, stretch)[0]]
    with torch.no_grad():
        loss = objective(known[0], known[1], slice(0, num_targets))
    return HeadResult(loss, known[0], known[1], torch.empty(0))


def _forwards(
    decoder: Decoder, batch: TrainBatch, embeds: Tensor | None, finish: Callable[[_Stretch], None]
) -> Iterator[_Stretch]:
    """Yield each stretch when it is forwarded; finish it when all below it are finished."""
    path: list[_Stretch] = []
    for number, (start, end, above) in enumerate(batch.edges):
        while path and path[-1].number != above:
            finish(path.pop())
        plan = EdgePlan(path[-1].plan if path else None)
        states = decoder.stretch_states(batch, slice(start, end), plan, embeds)
        predictors = _between(batch.predictors, start, end)
        targets = _between(batch.target_row, predictors.start, predictors.stop)
        path.append(_Stretch(number, plan, states[batch.predictors[predictors] - start], predictors, targets))
        yield path[-1]
    while path:
        finish(path.pop())


def _between(ascending: Tensor, low: int, high: int) -> slice:
    """Where an ascending column holds values of [low, high)."""
    bounds = torch.searchsorted(ascending, torch.tensor([low, high], device=ascending.device)).tolist()
    return slice(*bounds)


def _targets(batch: TrainBatch, stretch: _Stretch) -> tuple[Tensor, Tensor]:
    """Row among the stretch's predictors, and token, of each of its targets."""
    return batch.target_row[stretch.targets] - stretch.predictors.start, batch.target_ids[stretch.targets]


def _shifted(objective: Objective, first: int) -> Objective:
    """The objective of targets that are counted from `first`."""

    def shifted(logprobs: Tensor, entropy: Tensor, which: slice) -> Tensor:
        return objective(logprobs, entropy, slice(first + which.start, first + which.stop))

    return shifted


def _run_backward(stretch: _Stretch, states_grad: Tensor) -> None:
    """Propagate from the stretch's hidden states and from what was left at its keys and values."""
    ends, grads = [stretch.states], [states_grad]
    for layer, computed in stretch.plan.computed.items():
        for tensor, lent in zip(computed, stretch.plan.lent[layer], strict=True):
            if lent.grad is not None:
                ends.append(tensor)
                grads.append(lent.grad)
    reached = [(end, grad) for end, grad in zip(ends, grads, strict=True) if end.requires_grad and end.numel()]
    if reached:
        with torch.autocast(states_grad.device.type, enabled=False):  # a backward pass has the dtypes of its forward
            torch.autograd.backward([end for end, _ in reached], [grad for _, grad in reached])
