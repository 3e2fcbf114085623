"""An attention path: one way to compute a step's tokens, from the cut into micro-batches to the gradient.

A path is an object that registers itself under the name by which `train.attention_path` asks for it. It says what it
cannot train and what a step would cost, and computes. Trainer, policy and planner know paths by these methods alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from treegrpo_cli._core import Layout, MicroBatch
from treegrpo_cli.train.counts import ModelShape, Step, forward_tokens
from treegrpo_cli.train.forward import Decoder, tree_refusal
from treegrpo_cli.train.head import Head, HeadGradients, HeadResult, Objective
from treegrpo_cli.types import TrainBatch


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What shall be trained: the network with its adapters, where and in which dtype, by which `loss.ratio`."""

    network: Any
    device: torch.device
    dtype: torch.dtype
    ratio: str


class AttentionPath(ABC):
    """One way to compute a step's tokens. It holds no state; shapes are those of `types`."""

    name: ClassVar[str]
    shares: ClassVar[bool] = True
    """Whether a prefix is computed once for all that begin with it; its layouts are then shared ones."""
    reuses_weights: ClassVar[bool] = False
    """Whether a micro-batch takes several forwards, each of which reads all weights."""

    def refusal(self, subject: Subject) -> str | None:
        """Say why this path cannot train it, or None where nothing is known against it."""
        if subject.ratio == "sequence":
            return "a ratio over whole sequences differs between the rows that share a token"
        return tree_refusal(subject.network)

    @abstractmethod
    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it may be taken on this device unasked."""

    @abstractmethod
    def cost(self, step: Step, model: ModelShape, device: torch.device) -> float:
        """Estimate the forwards of a step, in floating point operations."""

    def computed_tokens(self, step: Step) -> int:
        """Return the tokens that an epoch forwards."""
        return step.split_tokens

    def micro_batches(self, layout: Layout, max_tokens: int, device: torch.device) -> list[MicroBatch]:
        """Cut a layout into what is computed at once, if possible at most `max_tokens`."""
        return layout.micro_batches(forward_tokens(layout, max_tokens, device))

    def parts(self, layout: Layout, max_tokens: int, device: torch.device) -> list[MicroBatch]:
        """Cut a layout into what several ranks share out, at most `max_tokens` each where paths allow it."""
        return self.micro_batches(layout, max_tokens, device)

    def exceeds(self, step: Step, max_tokens: int) -> bool:
        """Whether a single path is larger than what shall be computed at once."""
        return step.longest_path > max_tokens

    @abstractmethod
    def log_probs(self, decoder: Decoder, head: Head, batch: TrainBatch) -> Tensor:
        """Return the log-probabilities of the targets, [Q], in nats, without a graph.

        Raises TreeUnsupportedError where the model does not attend as the path asks it to.
        """

    @abstractmethod
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
        """Add the gradient of `objective` to the weights, to `grads` and to `embeds`; return what `head.backward` does.

        `is_local` as there. `embeds` [U, hidden] take the place of the tokens' embeddings. Raises as `log_probs`.
        """


Kind = TypeVar("Kind", bound=type[AttentionPath])

_PATHS: dict[str, AttentionPath] = {}


def register(kind: Kind) -> Kind:
    """Enter a path under its name; decorates its class."""
    _PATHS[kind.name] = kind()
    return kind


def registered() -> tuple[AttentionPath, ...]:
    """Return all paths."""
    return tuple(_PATHS.values())


def named(name: str) -> AttentionPath:
    """Return the path of this name. Raises KeyError where there is none: settings are checked when they are read."""
    return _PATHS[name]


def reference_path() -> AttentionPath:
    """Return the path that every other is checked against."""
    return named("chains")
