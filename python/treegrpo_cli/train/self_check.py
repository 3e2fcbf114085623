"""A policy + a small forest -> how far an attention path is from chains, on the run's own model.

What could go wrong with a model goes wrong in its forward: positions, masks, windows, state. So the forest is
computed on the path and, leaf by leaf, as the library knows it; log-probabilities are compared, and the gradient
of the loss at the tokens' embeddings, which passes through all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from treegrpo_cli.errors import said
from treegrpo_cli.train.paths import AttentionPath, reference_path
from treegrpo_cli.train.tree_attention import TreeUnsupportedError
from treegrpo_cli.types import TrainBatch

if TYPE_CHECKING:
    from treegrpo_cli.train.head import Objective
    from treegrpo_cli.train.policy import Policy

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Relative difference up to which two computations of a dtype count as the same."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """`difference`: the greater of the two relative differences, None where the path could not be computed.

    `refusal`: why the path must not be used, None where it may.
    """

    difference: float | None
    refusal: str | None


def check(
    policy: Policy, batch: TrainBatch, path: AttentionPath, objective: Objective, *, is_local: bool
) -> Disagreement:
    """Compute the batch on `path` and as chains; adds to the weights' gradients, which the caller then drops."""
    try:
        ours = _computed(policy, batch, path, objective, is_local)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except TreeUnsupportedError as error:
        return Disagreement(None, str(error))
    except Exception as error:  # a kernel that does not know the model's shapes fails in its own way
        return Disagreement(None, f"{type(error).__name__}: {said(error)}")
    theirs = _computed(policy, batch, reference_path(), objective, is_local)
    difference = max(_relative(one, other) for one, other in zip(ours, theirs, strict=True))
    if difference <= TOLERANCE[policy.dtype]:
        return Disagreement(difference, None)
    return Disagreement(difference, f"{path.name} and chains differ by {difference:.1e} on this model")


def _computed(
    policy: Policy, batch: TrainBatch, path: AttentionPath, objective: Objective, is_local: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets [Q], and the gradient at the embeddings [U, hidden]."""
    with torch.no_grad():
        embeds = policy.model.get_input_embeddings()(batch.token_ids)
    embeds.requires_grad_()
    result = policy.backward(batch, path, objective, is_local=is_local, embeds=embeds)
    assert embeds.grad is not None
    return result.logprobs.detach(), embeds.grad


def _relative(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|, 0 where both vanish and infinite where either is not a number."""
    distance, size = float((one - other).norm()), float(other.norm())
    if distance == 0:
        return 0.0
    return distance / size if size > 0 and distance == distance else float("inf")
