"""Where a model's weights live while it trains: whole, on this process's device.

`sharding` has the other way, in parts on several ranks. Policy and trainer know weights by these methods alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from treegrpo_cli.train.step_metrics import GRAD_NORM

States = Callable[..., Tensor]
"""Inputs of a decoder's forward, by keyword -> its last hidden states."""


class Residence:
    """The weights of a policy and its reference, whole on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Load a model and `settle` it: so many at a time as the machine's memory shall hold whole."""
        yield

    def settle(self, network: nn.Module, model: Any, decoder: nn.Module) -> States:
        """Take a network's weights to where they live; return the forward of the decoder in it.

        `model`: the causal LM in the network, which adapters may be around.
        """
        network.to(self.device)
        return states_of(decoder)

    @contextmanager
    def open(self, model: Any) -> Iterator[None]:
        """Let what stands outside of a model's layers be read for a while: embeddings, last norm, LM head."""
        yield

    @contextmanager
    def gathered(self, gather: Callable[[], object], add_up: Callable[[], object]) -> Iterator[None]:
        """Hold all weights here for a while: for forwards and backward passes that differ from rank to rank.

        `gather` forwards all models once, `add_up` runs backward through what is trained, and adds nothing.
        """
        yield

    def clip(self, weights: Iterable[nn.Parameter], sums: dict[str, Tensor], max_norm: float) -> dict[str, Tensor]:
        """Clip the gradient of a step to a norm; return a step's sums, now of all ranks, with the norm before."""
        return sums | {GRAD_NORM: nn.utils.clip_grad_norm_(weights, max_norm)}


def states_of(decoder: nn.Module) -> States:
    """Return the forward of a decoder as a function to its last hidden states."""

    def states(**inputs: Any) -> Tensor:
        found: Tensor = decoder(**inputs).last_hidden_state
        return found

    return states
