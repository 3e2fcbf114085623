"""What paths have in common that compute a micro-batch in one forward: hidden states, then the head."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from treegrpo_cli.train import head as heads
from treegrpo_cli.train.counts import ModelShape, Step
from treegrpo_cli.train.forward import Decoder
from treegrpo_cli.train.head import Head, HeadGradients, HeadResult, Objective
from treegrpo_cli.train.paths.base import AttentionPath
from treegrpo_cli.train.tree_attention import Plan
from treegrpo_cli.types import TrainBatch


class OneForward(AttentionPath):
    """A path that computes a micro-batch in one forward."""

    @abstractmethod
    def predictor_states(self, decoder: Decoder, batch: TrainBatch, embeds: Tensor | None = None) -> Tensor:
        """Return the last hidden states of `batch.predictors`, [P, hidden]; `embeds` as in `backward`."""

    def log_probs(self, decoder: Decoder, head: Head, batch: TrainBatch) -> Tensor:
        """See `AttentionPath`."""
        with torch.no_grad():
            states = self.predictor_states(decoder, batch)
            targets = (batch.target_row, batch.target_ids)
            return heads.log_probs(head, states, *targets, host_row=batch.host.target_row)[0]

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
        """See `AttentionPath`."""
        states = self.predictor_states(decoder, batch, embeds)
        targets, host_row = (batch.target_row, batch.target_ids), batch.host.target_row
        result = heads.backward(head, states.detach(), *targets, objective, grads, is_local=is_local, host_row=host_row)
        with torch.autocast(states.device.type, enabled=False):  # a backward pass has the dtypes of its forward
            states.backward(result.hidden_grad)  # type: ignore[no-untyped-call]
        return result


class WholeForest(OneForward):
    """A path that forwards every token of a micro-batch once, attending as its plan says."""

    @abstractmethod
    def plan(self, batch: TrainBatch) -> Plan:
        """Return how this micro-batch attends."""

    def predictor_states(self, decoder: Decoder, batch: TrainBatch, embeds: Tensor | None = None) -> Tensor:
        """See `OneForward`."""
        tokens = slice(0, len(batch.token_ids))
        return decoder.planned_states(batch, tokens, self.plan(batch), embeds)[batch.predictors]

    def cost(self, step: Step, model: ModelShape, device: torch.device) -> float:
        """See `AttentionPath`."""
        return step.split_tokens * model.token + step.pairs * model.pair
