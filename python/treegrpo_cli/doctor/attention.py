"""A tiny model, a path, a dtype -> whether a forest comes out as its rows do, each computed alone in float32.

The rows' way has nothing in common with the paths but the model: every leaf a row without padding, through the
library's own forward, softmax and backward. In float32 a path must agree with it; in bfloat16 it must not be further
from it than rows in bfloat16 are, by more than a factor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treegrpo_cli.config import Config
from treegrpo_cli.doctor.finding import Check, NotHereError, WrongError
from treegrpo_cli.doctor.forests import batch_of, random_trees
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.devices import choose_dtype
from treegrpo_cli.train.networks import load_model
from treegrpo_cli.train.paths import AttentionPath, Subject, reference_path, registered
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.types import TrainBatch

SECTION = "attention paths"

FLOAT32_TOLERANCE = 1e-4
"""Relative difference, of log-probabilities and of the gradient of all weights."""

NOISE_FACTOR = 3.0
"""How much further from rows in float32 than rows in bfloat16 a path in bfloat16 may be."""

PROMPT_TOKENS, TURN_TOKENS = 40, 24
NUM_TIMES = 3
"""The least of so many is said."""


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """logprobs [Q] in nats, and the gradient of all weights in one row."""

    logprobs: Tensor
    gradient: Tensor

    def distance(self, other: Computed) -> float:
        """The greater relative difference of the two; infinite where either is not a number."""
        pairs = ((self.logprobs, other.logprobs), (self.gradient, other.gradient))
        apart = [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs]
        return max(apart) if all(map(math.isfinite, apart)) else math.inf


def checks(folder: Path, device: torch.device) -> Iterator[Check]:
    """Yield a check for each path and dtype; paths in the order in which they register, chains first."""
    bench = Bench(folder, device)
    for dtype in (torch.float32, torch.bfloat16):
        for path in sorted(registered(), key=lambda path: path is not reference_path()):
            name = str(dtype).removeprefix("torch.")
            yield Check(SECTION, f"{path.name} in {name}", partial(bench.compare, path, dtype))


class Bench:
    """The tiny model on a device, and the forests that all paths compute."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._policies: dict[torch.dtype, Policy] = {}
        self._trees = random_trees(0, PROMPT_TOKENS, TURN_TOKENS)

    def compare(self, path: AttentionPath, dtype: torch.dtype) -> str:
        """Say how far a path is from lone rows, and how long it took. Raises WrongError, NotHereError."""
        try:
            choose_dtype(str(dtype).removeprefix("torch."), self._device)
        except UserError as error:  # an older card
            raise NotHereError(str(error)) from None
        policy = self._policy(dtype)
        if reason := path.refusal(Subject(policy.network, self._device, dtype, "token")):
            raise NotHereError(reason)
        batch = batch_of(self._trees, self._device, shared=path.shares)
        weights = signs(len(batch.target_ids), self._device)
        run_path(policy, path, batch, weights)  # what is compiled, is compiled now
        times = []
        for _ in range(NUM_TIMES):
            start = self._now()
            ours = run_path(policy, path, batch, weights)
            times.append(self._now() - start)
        truth = lone_rows(self._reference, batch, weights)
        limit = FLOAT32_TOLERANCE
        if dtype != torch.float32:
            limit = NOISE_FACTOR * lone_rows(self._reference, batch, weights, dtype).distance(truth)
        distance = ours.distance(truth)
        found = f"{distance:.1e} from rows computed alone in float32"
        if not distance <= limit:
            raise WrongError(f"{found}, and {limit:.1e} is the most that rounding explains")
        return f"{found}; forward and backward {1000 * min(times):.1f} ms for {len(batch.token_ids)} tokens"

    def _policy(self, dtype: torch.dtype) -> Policy:
        if dtype not in self._policies:
            name = str(dtype).removeprefix("torch.")
            model = {"path": str(self._folder), "device": str(self._device), "dtype": name}
            self._policies[dtype] = Policy(Config.model_validate({"model": model}))
        return self._policies[dtype]

    @cached_property
    def _reference(self) -> Any:
        return load_model(self._folder).to(self._device).train()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def signs(number: int, device: torch.device) -> Tensor:
    """Fixed random weights of both signs, by which log-probabilities are summed: nothing cancels by design."""
    draw = torch.Generator().manual_seed(1)
    return (torch.randint(0, 2, (number,), generator=draw) * 2.0 - 1.0).to(device)


def run_path(policy: Policy, path: AttentionPath, batch: TrainBatch, weights: Tensor) -> Computed:
    """Compute sum(weights · logprobs) and its gradient on a path."""
    trained = policy.trained_parameters()
    for weight in trained.values():
        weight.grad = None

    def objective(logprobs: Tensor, entropy: Tensor, which: slice | Tensor) -> Tensor:
        return (weights[which] * logprobs).sum()

    result = policy.backward(batch, path, objective, is_local=True)
    return Computed(result.logprobs.detach(), _gradient(list(trained.values())))


def lone_rows(model: Any, batch: TrainBatch, weights: Tensor, dtype: torch.dtype = torch.float32) -> Computed:
    """The same by one row a leaf, each alone in its forward; a target that rows share is read from the first."""
    model.zero_grad(set_to_none=True)
    logprobs = torch.zeros(len(batch.target_ids), device=weights.device)
    predictor = batch.predictors[batch.target_row].tolist()
    waiting = set(range(len(predictor)))
    for path in _paths(batch):
        places = {token: place for place, token in enumerate(path)}
        targets = sorted(target for target in waiting if predictor[target] in places)
        waiting.difference_update(targets)
        if not targets:
            continue
        with torch.autocast(weights.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(input_ids=batch.token_ids[path][None], use_cache=False).logits[0]
        rows = torch.tensor([places[predictor[target]] for target in targets], device=weights.device)
        found = torch.log_softmax(logits.float(), dim=-1)[rows, batch.target_ids[targets]]
        (weights[targets] * found).sum().backward()  # type: ignore[no-untyped-call]
        logprobs[targets] = found.detach()
    return Computed(logprobs, _gradient(list(model.parameters())))


def _paths(batch: TrainBatch) -> list[list[int]]:
    """The tokens from the root to each token that has none below, in the order of the layout."""
    parent = batch.parent_token.tolist()
    paths = []
    for leaf in sorted(set(range(len(parent))) - set(parent)):
        path, token = [], leaf
        while token >= 0:
            path.append(token)
            token = parent[token]
        paths.append(path[::-1])
    return paths


def _gradient(weights: list[Any]) -> Tensor:
    return torch.cat([weight.grad.flatten().float() for weight in weights if weight.grad is not None])
