"""The weights of a model in parts: each rank keeps one, and has a layer whole for as long as it computes it.

torch's FSDP2. Each layer of the decoder is gathered for its forward, gathered again for its backward pass, and its
gradient is summed over the ranks; the rest, embeddings, last norm and LM head, is one more such part, which stays
gathered from the forward to the end of the backward pass. So the LM head finds its weight whole, and what it adds to
the weight's gradient is reduced with the rest of it.

Each of these exchanges waits for all ranks: they forward equally often, in the same order. Weights travel in the dtype
that they are kept in, and autocast rounds them where they arrive: what is computed is what one process computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from treegrpo_cli.train.networks import layers_of
from treegrpo_cli.train.ranks import JoinedRanks
from treegrpo_cli.train.residence import Residence, States, states_of
from treegrpo_cli.train.shards import own_part
from treegrpo_cli.train.step_metrics import GRAD_NORM, over_ranks

STATES = "hidden_states_on_ranks"
"""Under this name a sharded causal LM has the forward of its decoder, with FSDP's hooks around it."""


class Sharded(Residence):
    """The weights of a policy and its reference, in parts on several ranks.

    A model is loaded whole into the memory of the host, by the ranks of a machine one after the other, and cut there:
    at any time one rank holds one model whole, in float32, beside the parts.
    """

    def __init__(self, ranks: JoinedRanks) -> None:
        assert ranks.device is not None
        super().__init__(ranks.device)
        self._ranks = ranks
        self._models: list[Any] = []
        self._is_gathered = False

    @contextmanager
    def loading(self) -> Iterator[None]:
        """See `Residence`."""
        with self._ranks.in_turn():
            yield

    def settle(self, network: nn.Module, model: Any, decoder: nn.Module) -> States:
        """See `Residence`."""
        for part in [*layers_of(decoder), model]:
            fully_shard(part, mesh=self._ranks.mesh, reshard_after_forward=part is not model)
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        model.set_reduce_scatter_unused_params(True)  # experts that no token of a rank has chosen
        setattr(model, STATES, states_of(decoder))
        register_fsdp_forward_method(model, STATES)
        self._models.append(model)
        states: States = getattr(model, STATES)
        return states

    @contextmanager
    def open(self, model: Any) -> Iterator[None]:
        """See `Residence`. Whatever is raised inside leaves the weights in parts, and no gradient of its forward."""
        if self._is_gathered:
            yield
            return
        model.unshard()
        try:
            yield
        except BaseException:
            model.reset_iter_state()
            raise
        model.reshard()

    @contextmanager
    def gathered(self, gather: Callable[[], object], add_up: Callable[[], object]) -> Iterator[None]:
        """See `Residence`. Each rank then holds all weights, and adds up whole gradients of what is trained."""
        if self._is_gathered:
            yield
            return
        with self._kept_whole():
            self._is_gathered = True
            try:
                gather()
                yield
            finally:
                self._is_gathered = False
            for model in self._models:
                model.set_requires_gradient_sync(True)
            add_up()

    @contextmanager
    def _kept_whole(self) -> Iterator[None]:
        """Reshard no weight that is gathered, and reduce no gradient, for a while."""
        with ExitStack() as stack:
            for model in self._models:
                stack.push(partial(_reshard, model))
                model.set_reshard_after_forward(False)
                model.set_reshard_after_backward(False)
                model.set_requires_gradient_sync(False)
                model.unshard()
            yield

    def clip(self, weights: Iterable[nn.Parameter], sums: dict[str, Tensor], max_norm: float) -> dict[str, Tensor]:
        """See `Residence`: as torch clips, but that the norm travels with the sums."""
        parts = [own_part(weight.grad) for weight in weights if weight.grad is not None]
        norm = nn.utils.get_total_norm(parts) if parts else torch.zeros((), device=self.device)
        sums = over_ranks(sums | {GRAD_NORM: norm}, self._ranks)
        factor = (max_norm / (sums[GRAD_NORM] + 1e-6)).clamp(max=1.0)
        for part in parts:
            part.mul_(factor.to(part.dtype))
        return sums


def _reshard(model: Any, error: object, *_: object) -> None:
    """Let a model's weights come and go layer by layer again, whatever was raised."""
    if error is not None:
        model.reset_iter_state()
    model.set_reshard_after_forward(True)
    model.set_reshard_after_forward(False, recurse=False)
    model.set_reshard_after_backward(True)
    model.set_requires_gradient_sync(True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
