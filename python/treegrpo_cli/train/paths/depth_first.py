"""A tree too large for one forward -> its loss and gradient, one edge at a time, with the memory of one path.

An edge is a maximal part of a tree without a branch. Edges are forwarded in depth-first order behind the keys and
values of those above them, each token once. When all below an edge is done its own backward pass runs: from its
hidden states, and from the gradients that the edges below have left at its keys and values. At any time only the
edges of one path hold a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli._core import Layout, MicroBatch
from treegrpo_cli.train import head as heads
from treegrpo_cli.train.batch import moved
from treegrpo_cli.train.counts import ModelShape, Step
from treegrpo_cli.train.forward import Decoder
from treegrpo_cli.train.head import Head, HeadGradients, HeadResult, Objective, Which
from treegrpo_cli.train.paths.base import AttentionPath, register
from treegrpo_cli.train.tree_attention import TreeUnsupportedError
from treegrpo_cli.train.visibility import lower_right_mask, masked_attention
from treegrpo_cli.types import TrainBatch

EDGE_FLOPS = {"cpu": 2e7, "cuda": 1e11}
"""Cost of one more edge, a layer: the kernels that it starts, however few tokens it has."""

WHOLE = 2**62
"""Tokens of a micro-batch: it is forwarded edge by edge, and any number does."""


@register
class DepthFirst(AttentionPath):
    """Each token once, however large the tree: nothing is cut, and no path computed again."""

    name = "depth-first"
    reuses_weights = True

    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `AttentionPath`."""
        return device.type in EDGE_FLOPS

    def cost(self, step: Step, model: ModelShape, device: torch.device) -> float:
        """See `AttentionPath`."""
        overhead = EDGE_FLOPS.get(device.type, 0.0) * step.num_edges * model.num_layers
        return step.unique_tokens * model.token + step.pairs * model.pair + overhead

    def computed_tokens(self, step: Step) -> int:
        """See `AttentionPath`."""
        return step.unique_tokens

    def micro_batches(self, layout: Layout, max_tokens: int, device: torch.device) -> list[MicroBatch]:
        """See `AttentionPath`."""
        return layout.micro_batches(WHOLE)

    def parts(self, layout: Layout, max_tokens: int, device: torch.device) -> list[MicroBatch]:
        """See `AttentionPath`: its micro-batches have no size of their own."""
        return layout.micro_batches(max_tokens)

    def exceeds(self, step: Step, max_tokens: int) -> bool:
        """See `AttentionPath`."""
        return False

    def log_probs(self, decoder: Decoder, head: Head, batch: TrainBatch) -> Tensor:
        """See `AttentionPath`."""
        with torch.no_grad():
            parts = [
                heads.log_probs(head, edge.states, *_targets(batch, edge), host_row=_host_row(batch, edge))[0]
                for edge in _forwards(decoder, batch, None, lambda _: None)
            ]
        return torch.cat(parts)

    def backward(
        self,
        decoder: Decoder,
        head: Head,
        batch: TrainBatch,
        objective: Objective,
        grads: HeadGradients,
        *,
        is_local: bool,
        embeds: Tensor | None = None,
    ) -> HeadResult:
        """See `AttentionPath`.

        A ratio over whole turns is known once the turn's last edge is forwarded, and that is before any of its edges
        runs backward: until then only the log-probabilities of the others are kept.
        """
        known = _Known(batch)

        def finish(edge: _Edge) -> None:
            local = objective if is_local else known.linearised(objective, edge.targets)
            local, targets = _shifted(local, edge.targets.start), _targets(batch, edge)
            states, host_row = edge.states.detach(), _host_row(batch, edge)
            result = heads.backward(head, states, *targets, local, grads, is_local=True, host_row=host_row)
            known.logprobs[edge.targets], known.entropy[edge.targets] = result.logprobs, result.entropy
            _run_backward(edge, result.hidden_grad)

        for edge in _forwards(decoder, batch, embeds, finish):
            if not is_local:
                row, ids = _targets(batch, edge)
                logprobs, entropy = heads.log_probs(
                    head, edge.states.detach(), row, ids, host_row=_host_row(batch, edge)
                )
                known.logprobs[edge.targets], known.entropy[edge.targets] = logprobs, entropy[row]
        with torch.no_grad():
            loss = objective(known.logprobs, known.entropy, slice(0, len(known.logprobs)))
        return HeadResult(loss, known.logprobs, known.entropy, torch.empty(0))


class _Known:
    """What has been computed of the targets, [Q]: log-probabilities, entropies, and an objective's slopes at both.

    Slopes are found turn by turn, each turn once and whole, when an edge asks for them that has some of its targets:
    its first token may be read from another edge than the rest.
    """

    def __init__(self, batch: TrainBatch) -> None:
        dtype = torch.promote_types(batch.weights.dtype, torch.float32)
        self.logprobs, self.entropy, self._by_logprob = (
            torch.zeros(len(batch.target_ids), dtype=dtype, device=batch.weights.device) for _ in range(3)
        )
        self._by_entropy: Tensor | None = None
        _, self._turn, sizes = np.unique(batch.host.turn, return_inverse=True, return_counts=True)
        self._of_turn = np.split(np.argsort(self._turn, kind="stable"), np.cumsum(sizes)[:-1])
        self._is_found = np.zeros(len(sizes), dtype=bool)

    def linearised(self, objective: Objective, targets: slice) -> Objective:
        """Return a local objective whose gradient at these targets is that of `objective`."""
        turns = np.unique(self._turn[targets])
        turns = turns[~self._is_found[turns]]
        if len(turns):
            self._is_found[turns] = True
            self._find(objective, np.sort(np.concatenate([self._of_turn[turn] for turn in turns])))
        return heads.linear(self._by_logprob, self._by_entropy)

    def _find(self, objective: Objective, numbers: NDArray[np.int64]) -> None:
        which = moved(numbers, self.logprobs.device)
        _, by_logprob, by_entropy = heads.slopes(objective, self.logprobs[which], self.entropy[which], which)
        self._by_logprob[which] = by_logprob
        if by_entropy is not None:
            self._by_entropy = torch.zeros_like(self.entropy) if self._by_entropy is None else self._by_entropy
            self._by_entropy[which] = by_entropy


class EdgePlan:
    """One edge of a tree, a part without a branch, behind the keys and values of the edges above it.

    `computed` holds each layer's keys and values with their graph, `lent` the same as leaves of the edges
    below, which leave their gradients there. `is_forwarded`: a layer that now asks again is a checkpointed one, whose
    gradient is computed. No dataclass: torch's FSDP copies those that hold tensors with a graph, layer by layer.
    """

    def __init__(self, above: EdgePlan | None) -> None:
        self.above = above
        self.num_calls, self.is_forwarded = 0, False
        self.computed: dict[int, tuple[Tensor, Tensor]] = {}
        self.lent: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `tree_attention.Plan`."""
        if layer in self.computed and not self.is_forwarded:
            raise TreeUnsupportedError("its layers are computed several times in one forward")
        if layer not in self.computed:
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
        """The edges above, from the root down."""
        path: list[EdgePlan] = []
        edge = self.above
        while edge is not None:
            path.append(edge)
            edge = edge.above
        return path[::-1]


@dataclass
class _Edge:
    """A forwarded edge: its hidden states that are read, and which predictors and targets these are."""

    number: int
    plan: EdgePlan
    states: Tensor
    predictors: slice
    targets: slice


def _forwards(
    decoder: Decoder, batch: TrainBatch, embeds: Tensor | None, finish: Callable[[_Edge], None]
) -> Iterator[_Edge]:
    """Yield each edge when it is forwarded; finish it when all below it are finished."""
    path: list[_Edge] = []
    for number, (start, end, above) in enumerate(batch.edges):
        while path and path[-1].number != above:
            finish(path.pop())
        plan = EdgePlan(path[-1].plan if path else None)
        states = decoder.planned_states(batch, slice(start, end), plan, embeds)
        plan.is_forwarded = True
        predictors = _between(batch.host.predictors, start, end)
        targets = _between(batch.host.target_row, predictors.start, predictors.stop)
        path.append(_Edge(number, plan, states[batch.predictors[predictors] - start], predictors, targets))
        yield path[-1]
    while path:
        finish(path.pop())


def _between(ascending: NDArray[np.int64], low: int, high: int) -> slice:
    """Where an ascending column holds values of [low, high)."""
    return slice(*np.searchsorted(ascending, [low, high]).tolist())


def _targets(batch: TrainBatch, edge: _Edge) -> tuple[Tensor, Tensor]:
    """Row among the edge's predictors, and token, of each of its targets."""
    return batch.target_row[edge.targets] - edge.predictors.start, batch.target_ids[edge.targets]


def _host_row(batch: TrainBatch, edge: _Edge) -> NDArray[np.int64]:
    row: NDArray[np.int64] = batch.host.target_row[edge.targets] - edge.predictors.start
    return row


def _shifted(objective: Objective, first: int) -> Objective:
    """The objective of targets that are counted from `first`."""

    def shifted(logprobs: Tensor, entropy: Tensor, which: Which) -> Tensor:
        moved = slice(first + which.start, first + which.stop) if isinstance(which, slice) else first + which
        return objective(logprobs, entropy, moved)

    return shifted


def _run_backward(edge: _Edge, states_grad: Tensor) -> None:
    """Propagate from the edge's hidden states and from what was left at its keys and values."""
    ends, grads = [edge.states], [states_grad]
    for layer, computed in edge.plan.computed.items():
        for tensor, lent in zip(computed, edge.plan.lent[layer], strict=True):
            if lent.grad is not None:
                ends.append(tensor)
                grads.append(lent.grad)
    reached = [(end, grad) for end, grad in zip(ends, grads, strict=True) if end.requires_grad and end.numel()]
    if reached:
        with torch.autocast(states_grad.device.type, enabled=False):  # a backward pass has the dtypes of its forward
            torch.autograd.backward([end for end, _ in reached], [grad for _, grad in reached])
