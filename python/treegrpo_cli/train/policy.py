"""Config -> the model that is trained, the frozen one it is held to, and their log-probabilities.

Precision. `float32` computes in float32. `bfloat16` keeps the trained weights, their gradients and
Adam's moments in float32 and computes matrix products in bfloat16 (autocast). At a learning rate of
1e-6 an update is far below the spacing of bfloat16 numbers (2^-8 of a weight), so that weights kept in
bfloat16 would not move at all. Frozen linear weights (the reference, and the base under LoRA) are
stored in bfloat16: autocast would round them to that anyway, so their results are the same bits.

The model computes as it does when it samples, or the policy that is trained would not be the one that sampled: without
dropout, jitter or layers that are skipped at random, and with positions that no other row moves. LoRA's own dropout
is as configured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError, said
from treegrpo_cli.models.devices import choose_device, choose_dtype
from treegrpo_cli.models.positions import fix_positions
from treegrpo_cli.models.pretrained import context_limit
from treegrpo_cli.models.weights import Adapter, Weights
from treegrpo_cli.train import head as heads
from treegrpo_cli.train.dealing import idle_batch
from treegrpo_cli.train.forward import Decoder, class_name, decoder_of
from treegrpo_cli.train.head import Head, HeadGradients, HeadResult, Objective, nothing
from treegrpo_cli.train.networks import (
    add_lora,
    load_model,
    set_mode,
    store_frozen_in_bfloat16,
    widened,
    without_dropout,
)
from treegrpo_cli.train.outgoing import merged_weights, trained_adapter
from treegrpo_cli.train.paths import AttentionPath, reference_path
from treegrpo_cli.train.ranks import ALONE, JoinedRanks, Ranks
from treegrpo_cli.train.residence import Residence
from treegrpo_cli.types import TrainBatch


class Policy:
    """The trained model and its reference, where the KL asks for one.

    `model` is the plain causal LM; `network` is what is called: the same, or peft's wrapper around it.
    """

    model: Any
    network: Any
    reference: Any

    def __init__(self, config: Config, ranks: Ranks = ALONE) -> None:
        self.temperature = config.rollout.temperature
        self.uses_lora = config.model.lora_rank > 0
        self._lora = config.model
        self.ranks, self.device = ranks, ranks.device or choose_device(config.model.device)
        self.dtype = choose_dtype(config.model.dtype, self.device)
        self.residence = residence_of(self.device, ranks)
        with self.residence.loading():
            self.model = self._load(config)
            self.network = add_lora(self.model, config.model) if self.uses_lora else self.model
            if config.model.gradient_checkpointing:
                self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.decoder = self._settled(self.network, self.model)
            set_mode(self.network)
        self.reference = None
        if config.loss.kl_coef > 0 and not self.uses_lora:
            with self.residence.loading():
                self.reference = self._load(config).requires_grad_(False)
                self._reference_decoder = self._settled(self.reference, self.reference)
        self._check_forward()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer moves, by name in `network`; tied weights once."""
        return {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}

    def backward(
        self,
        batch: TrainBatch,
        path: AttentionPath,
        objective: Objective,
        *,
        is_local: bool,
        embeds: Tensor | None = None,
    ) -> HeadResult:
        """Add the gradient of `objective` to the trained weights; return loss, log-probabilities and entropies, [Q].

        `is_local` as in `head.backward`; `embeds` [U, hidden] take the place of the tokens' embeddings and get a
        gradient. Raises TreeUnsupportedError as the path does.
        """
        with self.residence.open(self.model), self._autocast(path.reuses_weights):
            head, grads = self._head(self.model, path.reuses_weights), self._head_gradients()
            return path.backward(self.decoder, head, batch, objective, grads, is_local=is_local, embeds=embeds)

    @contextmanager
    def ready(self, path: AttentionPath) -> Iterator[None]:
        """Compute one micro-batch after the other on a path; gradients are whole at the end of it.

        On ranks, a path that reads weights again and again, as often as a rank's own trees ask for, holds all of them.
        """
        with self.residence.gathered(self._visit, self._add_nothing) if path.reuses_weights else nullcontext():
            yield

    @contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Compute in another dtype for a while: in bfloat16, or in what trained weights are stored in."""
        own, self.dtype = self.dtype, dtype
        try:
            with widened(self.network) if dtype != own else nullcontext():
                yield
        finally:
            self.dtype = own

    @torch.no_grad()
    def log_probs(self, batch: TrainBatch, path: AttentionPath) -> Tensor:
        """Return the policy's log-probabilities of the targets, [Q], in nats, without a gradient or LoRA's dropout."""
        with without_dropout(self.network):
            return self._log_probs(self.model, self.decoder, batch, path)

    @torch.no_grad()
    def ref_log_probs(self, batch: TrainBatch, path: AttentionPath) -> Tensor:
        """Return the reference's log-probabilities of the targets, [Q]; under LoRA it is the base."""
        with self.network.disable_adapter() if self.uses_lora else nullcontext():
            if self.reference is None:
                return self._log_probs(self.model, self.decoder, batch, path)
            return self._log_probs(self.reference, self._reference_decoder, batch, path)

    def weights(self, dtype: torch.dtype) -> Weights:
        """Return the plain model's `state_dict()`, tied names included, adapters merged on the way.

        The training weights stay as they are; a tensor of it may share their memory.
        """
        return merged_weights(self.model, dtype)

    def adapter(self) -> Adapter | None:
        """Return the trained adapter, whose tensors are those that the optimizer moves; None without one."""
        return trained_adapter(self.model, self._lora) if self.uses_lora else None

    @staticmethod
    def _load(config: Config) -> Any:
        """Load the model with the positions that the engine computes with."""
        path = config.model.path
        model = load_model(path)
        fix_positions(model, context_limit(path, config.rollout.context_tokens))
        return model

    def embeddings(self, token_ids: Tensor) -> Tensor:
        """Return what the policy's layers read of tokens [U], without a graph: [U, hidden]."""
        with torch.no_grad(), self.residence.open(self.model):
            embeds: Tensor = self.model.get_input_embeddings()(token_ids)
        return embeds

    def _visit(self) -> None:
        """Read all weights once."""
        idle = idle_batch(self.device)
        self.log_probs(idle, reference_path())
        if self.reference is not None:
            self.ref_log_probs(idle, reference_path())

    def _add_nothing(self) -> None:
        """Run backward through whatever is trained."""
        if any(weight.requires_grad for weight in self.network.parameters()):
            self.backward(idle_batch(self.device), reference_path(), nothing, is_local=True)

    def _log_probs(self, model: Any, decoder: Decoder, batch: TrainBatch, path: AttentionPath) -> Tensor:
        with self.residence.open(model), self._autocast(path.reuses_weights):
            return path.log_probs(decoder, self._head(model, path.reuses_weights), batch)

    def _head(self, model: Any, reuses_weights: bool = False) -> Head:
        """The LM head as the model applies it: some scale or cap their logits.

        It is cast here where it is read several times, else where it is read and no longer.
        """
        output, config = model.get_output_embeddings(), model.config.get_text_config()
        weight = output.weight.detach()
        scale = getattr(model, "logit_scale", 1.0)
        for divisor in ("logits_scaling", "logits_mup_width_multiplier"):
            scale /= getattr(config, divisor, None) or 1.0
        caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
        softcap = next((cap for name in caps if (cap := getattr(config, name, None))), None)
        return Head(
            weight.to(torch.bfloat16) if reuses_weights and self.dtype == torch.bfloat16 else weight,
            None if output.bias is None else output.bias.detach(),
            temperature=self.temperature / scale,
            softcap=softcap,
        )

    def _head_gradients(self) -> HeadGradients:
        """Where the head's gradient is added: the weights' own."""
        output = self.model.get_output_embeddings()
        return HeadGradients(_gradient_of(output.weight), _gradient_of(output.bias))

    @torch.no_grad()
    def _check_forward(self) -> None:
        """Raise UserError where the model does not read text alone, reads ahead, or makes its logits in its own way.

        In float32: rounding in bfloat16 moves logits that are large by more than such a model may.
        """
        targets = torch.arange(4, device=self.device)
        cannot = f"model.path: {class_name(self.model)} cannot be trained"
        try:
            with self.computing_in(torch.float32), self.residence.open(self.model):
                logits = self.model(input_ids=targets[None], use_cache=False).logits[0]
                before = self.model(input_ids=targets[None, :2], use_cache=False).logits[0]
                states = self.decoder.states(input_ids=targets[None], use_cache=False)[0]
                ours, _ = heads.log_probs(self._head(self.model), states, targets, targets)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever a model asks for beside text
            raise UserError(
                f"{cannot}: it does not compute plain text ({type(error).__name__}: {said(error)})"
            ) from error
        logprobs = torch.log_softmax(logits.float() / self.temperature, dim=-1)
        spread = before - before.mean(dim=-1, keepdim=True)
        if float((logits[:2] - before).norm()) > 0.01 * float(spread.norm()):
            raise UserError(f"{cannot}: its tokens see later ones")
        if not torch.allclose(ours, logprobs[targets, targets], rtol=0.0, atol=1e-3):
            raise UserError(f"{cannot}: its logits are not those of its LM head on the last hidden states")

    def _autocast(self, reuses_weights: bool = False) -> torch.autocast:
        """Autocast; its cache keeps a bfloat16 copy of every float32 weight until the context ends.

        Those are half the weights' bytes once more, through forward, head and backward. Where a micro-batch is one
        forward they save nothing: each weight is read once, and again by the recomputation of a checkpointed layer.
        A graph keeps the copies that its own backward reads, layer by layer. Edge by edge, every edge's graph would
        keep copies of its own: there the cache saves memory and casts.
        """
        is_on = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_on, cache_enabled=reuses_weights)

    def _settled(self, network: nn.Module, model: Any) -> Decoder:
        """Take a loaded network's weights to where they live."""
        if self.dtype == torch.bfloat16:
            store_frozen_in_bfloat16(network)
        return Decoder(model, self.residence.settle(network, model, decoder_of(model)))


def residence_of(device: torch.device, ranks: Ranks) -> Residence:
    """Return where weights live: here, or in parts on several ranks."""
    if not isinstance(ranks, JoinedRanks) or ranks.size == 1:
        return Residence(device)
    from treegrpo_cli.train.sharding import Sharded

    return Sharded(ranks)


def _gradient_of(weight: nn.Parameter | None) -> Tensor | None:
    if weight is None or not weight.requires_grad:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
