"""A policy + a small forest -> how far an attention path is from rows computed alone, on the run's own model.

What could go wrong with a model goes wrong in its forward: positions, masks, windows, state. So the forest is computed
on the path and, as the truth, leaf by leaf, each row alone in its forward and without padding; log-probabilities are
compared, and the gradient of a sum of them with random signs at the tokens' embeddings, which passes through all
layers. The run's own objective has no part in it: at a first step its gradient may vanish, and with it the measure.

Both are computed in float32, or wider where the weights are, where rounding hides nothing; rows side by side say how
much of it there is. In bfloat16 a path must be hardly further from the float32 truth than rows are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from treegrpo_cli.train.check_forest import rows_of
from treegrpo_cli.train.head import linear
from treegrpo_cli.train.networks import without_dropout
from treegrpo_cli.train.path_errors import PathFailedError, blaming
from treegrpo_cli.train.paths import AttentionPath, Subject, reference_path
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.shards import whole
from treegrpo_cli.types import TrainBatch

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative difference that is never held against a computation in this dtype."""

WIDE_FACTOR, NARROW_FACTOR = 10.0, 1.5
"""How many times as far from the truth as rows a path may be: in float32 as rows side by side, which are one kernel and
hardly differ; in bfloat16 as rows in bfloat16."""

UNSTEADY, UNSTEADY_ROUNDING = 0.02, 3e-3
"""Where routers choose experts: the share of the tokens that are left out of the distance, and what is not held against
the others. A tie that rounding breaks in another way changes a token, and a little all that attend to it."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """`difference`: the greater of the two relative differences, None where the path could not be computed.

    `refusal`: why the path must not be used, None where it may · `longest`: tokens of the longest path computed.
    """

    difference: float | None
    refusal: str | None
    longest: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """Log-probabilities of the targets [Q], and the gradient at the embeddings [U, hidden] or at a weight [N, D]."""

    logprobs: Tensor
    grad: Tensor


class Trial:
    """One small forest of a policy; what paths are compared with is computed once for all of them.

    The weights have no gradients of it: computing them would take half as long again. `is_local`: see `head.backward`.
    """

    def __init__(self, policy: Policy, batch: TrainBatch, *, is_local: bool = True) -> None:
        self._policy, self._batch, self._is_local = policy, batch, is_local
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (len(batch.target_ids),), generator=generator) * 2 - 1
        self._signs = signs.to(batch.target_ids.device)
        self._wide = torch.promote_types(policy.model.get_input_embeddings().weight.dtype, torch.float32)
        self._left_out, self._rounding = 0.0, ROUNDING[self._wide]
        if _has_experts(policy.model.config.get_text_config()):
            self._left_out, self._rounding = UNSTEADY, UNSTEADY_ROUNDING
        with without_dropout(policy.network):
            self._takes_embeds, self._alone = self._truth()

    def of(self, path: AttentionPath) -> Disagreement:
        """Compare a path with the truth; chains are rows side by side, and are compared with rows alone."""
        try:
            with without_dropout(self._policy.network):
                difference, refusal = self._padding() if path is reference_path() else self._path(path)
        except PathFailedError as error:
            difference, refusal = None, str(error)
        return Disagreement(difference, refusal, self._batch.max_path_tokens)

    @property
    def is_finite(self) -> bool:
        """Whether the truth is numbers: there is none about a model that has others."""
        is_finite = bool(self._alone.logprobs.isfinite().all() and self._alone.grad.isfinite().all())
        return self._policy.ranks.agree(is_finite)

    def is_repeatable(self) -> bool:
        """Whether a row alone gives what it gave before: nothing is drawn at random in the model's forward."""
        with without_dropout(self._policy.network):
            again = self._rows(1, self._wide)
        return max(self._distance(again, self._alone)) <= self._rounding

    def _padding(self) -> tuple[float, str | None]:
        difference = max(self._noise)
        is_fine = difference <= self._rounding
        return difference, None if is_fine else f"rows side by side and rows alone differ by {difference:.1e}"

    def _path(self, path: AttentionPath) -> tuple[float | None, str | None]:
        """The difference in the widest dtype that the path computes in, and what any of them says against it."""
        policy = self._policy
        is_narrow = policy.dtype == torch.bfloat16
        reason = path.refusal(Subject(policy.network, policy.device, self._wide, "token"))
        found = []
        try:
            found += [] if reason else [self._in_full(path)]
        except PathFailedError:
            if not is_narrow:  # else its kernel may know no more than it needs to
                raise
        if is_narrow and not any(refusal for _, refusal in found):
            found.append(self._in_bfloat16(path))
        return (found[0][0], found[-1][1]) if found else (None, reason)

    def _in_full(self, path: AttentionPath) -> tuple[float, str | None]:
        by_padding = self._noise if max(self._noise) <= self._rounding else (0.0, 0.0)
        found = self._distance(self._on(path, self._wide), self._alone)
        if _within(found, [max(self._rounding, WIDE_FACTOR * noise) for noise in by_padding]):
            return max(found), None
        return max(found), f"{path.name} and chains differ by {max(found):.1e} on this model"

    def _in_bfloat16(self, path: AttentionPath) -> tuple[float, str | None]:
        found, chains = self._distance(self._on(path, torch.bfloat16), self._alone), self._narrow_noise
        if _within(found, [NARROW_FACTOR * noise for noise in chains]):
            return max(found), None
        is_off = f"{path.name} in bfloat16 is {max(found):.1e} from float32 on this model"
        return max(found), f"{is_off}, and chains are {max(chains):.1e}"

    def _truth(self) -> tuple[bool, Computed]:
        """Rows alone, and whether the model's forward takes embeddings for tokens: one that reads both may not."""
        self._takes_embeds = True
        try:
            return True, self._rows(1, self._wide)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:
            self._takes_embeds = False
        return False, self._rows(1, self._wide)

    @cached_property
    def _noise(self) -> tuple[float, float]:
        return self._distance(self._rows(2, self._wide), self._alone)

    @cached_property
    def _narrow_noise(self) -> tuple[float, float]:
        return self._distance(self._rows(1, torch.bfloat16), self._alone)

    def _distance(self, one: Computed, other: Computed) -> tuple[float, float]:
        pairs = ((one.logprobs[:, None], other.logprobs[:, None]), (one.grad, other.grad))
        found = [_relative(ours, theirs, self._left_out) for ours, theirs in pairs]
        by_logprob, by_grad = self._policy.ranks.agree(found)  # all that is decided follows from these
        return by_logprob, by_grad

    def _on(self, path: AttentionPath, dtype: torch.dtype) -> Computed:
        """Compute the whole forest on a path."""
        with blaming(path):
            return self._compute([(self._batch, torch.arange(len(self._signs)))], path, dtype)

    def _rows(self, side_by_side: int, dtype: torch.dtype) -> Computed:
        """Every run a row, so many in a forward: the longest beside the shortest."""
        return self._compute(rows_of(self._batch, side_by_side), reference_path(), dtype)

    def _compute(self, parts: Sequence[tuple[TrainBatch, Tensor]], path: AttentionPath, dtype: torch.dtype) -> Computed:
        """Compute parts of the forest, each with the places of its targets in the whole."""
        policy = self._policy
        embeds = self._embeds() if self._takes_embeds else None
        logprobs = torch.zeros(len(self._signs), dtype=self._wide, device=self._signs.device)
        kept = None if self._takes_embeds else self._weight
        with policy.computing_in(dtype), _frozen(policy, kept), policy.ready(path):
            for part, places in parts:
                signed_sum = linear(self._signs[places].to(self._wide), None)
                result = policy.backward(part, path, signed_sum, is_local=self._is_local, embeds=embeds)
                logprobs[places] = result.logprobs.detach().to(self._wide)
        if embeds is None:
            grad, self._weight.grad = self._weight.grad, None
        else:
            grad = embeds.grad
        assert grad is not None
        return Computed(logprobs, whole(grad).flatten(1))

    def _embeds(self) -> Tensor:
        return self._policy.embeddings(self._batch.token_ids).requires_grad_()

    @cached_property
    def _weight(self) -> nn.Parameter:
        """Where the gradient is compared instead: at the first matrix that is trained, beside the embeddings."""
        model = self._policy.model
        ends = [end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings())]
        weights = [weight for weight in self._policy.trained_parameters().values() if weight.dim() >= 2]
        return next(weight for weight in weights if all(weight is not end for end in ends))


def check(policy: Policy, batch: TrainBatch, path: AttentionPath, *, is_local: bool = True) -> Disagreement:
    """Compute the batch on `path` and row by row."""
    return Trial(policy, batch, is_local=is_local).of(path)


def _relative(one: Tensor, other: Tensor, left_out: float) -> float:
    """|one - other| / |other| of rows [N, D], the worst few of which may be left out.

    0 where both vanish, and infinite where either is not a number.
    """
    squares = (one - other).double().square().sum(dim=1).sort().values
    distance, size = float(squares[: math.ceil(len(squares) * (1 - left_out))].sum().sqrt()), float(other.norm())
    if math.isnan(float(squares.sum())):
        return math.inf
    if distance == 0:
        return 0.0
    return distance / size if size > 0 else math.inf


def _within(found: Sequence[float], limits: Sequence[float]) -> bool:
    return all(math.isfinite(one) and one <= limit for one, limit in zip(found, limits, strict=True))


def _has_experts(config: Any) -> bool:
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any(getattr(config, name, None) for name in names)


@contextmanager
def _frozen(policy: Policy, kept: nn.Parameter | None) -> Iterator[None]:
    """Ask for no gradient of the trained weights for a while, but for one that is kept."""
    weights = [weight for weight in policy.trained_parameters().values() if weight is not kept]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_()
