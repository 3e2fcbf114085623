"""Forest + scores + Config -> updated weights and their metrics: one rollout step's optimizer steps.

    lay out the prompts of every mini-batch, each token once; choose how to compute them
    the old policy's log-probabilities, where the ratio is not to the sampler's
    for every epoch, for every mini-batch:
        Z of the whole mini-batch
        for every micro-batch of tokens: forward, loss / Z, backward
        clip, step

Z is known before the first forward, so the size of micro-batches changes memory and never the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli._core import Forest, Layout, Scores, derive_seed
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.train.batch import layouts, to_batch
from treegrpo_cli.train.batch_loss import BatchLoss, denominator
from treegrpo_cli.train.counts import Step
from treegrpo_cli.train.dealing import idle_batch
from treegrpo_cli.train.head import nothing
from treegrpo_cli.train.path_choice import PathChooser
from treegrpo_cli.train.path_errors import PathFailedError, blaming
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.ranks import ALONE, Ranks
from treegrpo_cli.train.resolved_loss import resolved_loss
from treegrpo_cli.train.schedule import (
    learning_rate,
    make_optimizer,
    minibatches_per_epoch,
    prompts_per_minibatch,
)
from treegrpo_cli.train.settings import check_settings
from treegrpo_cli.train.step_metrics import add, means, summary, token_sums
from treegrpo_cli.types import TrainBatch

Metrics = dict[str, float | str]
T = TypeVar("T")


class Trainer:
    """Holds policy, reference, optimizer and schedule; `step` counts the rollout steps that were trained on.

    `is_whole` is False while weights are between two steps: from an update's first optimizer step to its end.
    `packing_s`: seconds that laying out took in the last update, whose metrics follow from its input alone.
    `tokenizer` is what checkpoints keep (None: read when one is written; a long run's model folder may be gone then).
    `paths` chooses how forests are computed; `say` takes the lines that explain it. `policy` is loaded where it is not
    given. Raises UserError for settings that cannot be trained with.

    `ranks`: the processes that train this model together, each with a trainer of its own. All of them do the same with
    the same arguments at the same time: build it, `update`, read weights. What an update returns is the same on all.
    """

    def __init__(
        self,
        config: Config,
        say: Callable[[str], None] = lambda _: None,
        tokenizer: Any = None,
        policy: Policy | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        say = say if ranks.is_first else lambda _: None
        check_settings(config, say)
        torch.manual_seed(config.seed)  # adapters start from it
        self.config, self.tokenizer, self.ranks = config, tokenizer, ranks
        self.policy = policy or Policy(config, ranks)
        self.loss = resolved_loss(config.loss, self.policy.dtype, config.scale.max_staleness)
        self.optimizer = make_optimizer(self.policy, config)
        self.step = 0
        self.is_whole = True
        self.packing_s = 0.0
        self.paths = PathChooser(config, self.policy, say)

    def update(self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None = None) -> Metrics:
        """Train on the scored leaves of one rollout step and return its metrics.

        A prompt that is not in the forest, or not in `prompts` where they are given, counts nowhere. A forest
        without a trained token leaves the weights alone. Raises UserError where memory runs out, a path is longer
        than the model's positions or the loss is not finite; the weights then stay as they were before the failing
        optimizer step.
        """
        history: list[dict[str, float]] = []
        try:
            packed, metrics = self._lay_out(forest, scores, prompts)
            with self._random_state():
                recomputed = self._attempt(self._recomputed, packed)
                for epoch in range(self.config.train.num_epochs):
                    for position in range(len(packed)):
                        self._set_learning_rate(epoch, position)
                        while recomputed is None or not self._attempt(
                            self._optimizer_step, packed[position], recomputed[position], history
                        ):
                            packed = self._layouts(forest, scores, prompts, shared=False)
                            recomputed = self._recomputed(packed)
        except (torch.OutOfMemoryError, MemoryError):
            raise UserError(
                f"step {self.step + 1}: out of memory; lower train.microbatch_tokens, now "
                f"{self.config.train.microbatch_tokens}, or sampler.gpu_memory_utilization, or set "
                "model.gradient_checkpointing = true"
            ) from None
        self.step, self.is_whole = self.step + 1, True
        rate = float(self.optimizer.param_groups[0]["lr"])
        return summary(history, self.loss.recomputes) | {"learning_rate": rate} | metrics | self.paths.metrics()

    @property
    def _drops_out(self) -> bool:
        return self.config.model.lora_rank > 0 and self.config.model.lora_dropout > 0

    def state_dict_for_sampler(self) -> Weights:
        """Return the whole model in `model.dtype`, named as in its `state_dict()`, LoRA merged."""
        return self.policy.weights(self.policy.dtype)

    @contextmanager
    def _random_state(self) -> Iterator[None]:
        """What LoRA's dropout draws: pure in seed and step, whoever else draws or seeds, and never seen by them.

        Nothing else draws here; without it the state is left to those who draw in another thread meanwhile.
        """
        if not self._drops_out:
            yield
            return
        device = self.policy.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            rank = [self.ranks.rank] if self.ranks.rank else []  # each drops out of its own tokens
            torch.manual_seed(derive_seed([self.config.seed, self.step, *rank]))
            yield

    def _lay_out(
        self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None
    ) -> tuple[list[Layout], Metrics]:
        """Lay out every mini-batch for the path that is chosen."""
        self.packing_s = 0.0
        packed = self._layouts(forest, scores, prompts, shared=True)
        step = Step.of(packed, self.config.train.microbatch_tokens, self.policy.device)
        self._check_positions(step)
        metrics = self.paths.take(step, packed)
        return (packed if self.paths.path.shares else self._layouts(forest, scores, prompts, shared=False)), metrics

    def _layouts(
        self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None, *, shared: bool
    ) -> list[Layout]:
        start, size = time.monotonic(), prompts_per_minibatch(self.config)
        row_mean, weight = self.loss.denominator == "sequence-mean", self.loss.prefix_weight
        packed = layouts(forest, scores, weight, size, shared=shared, row_mean=row_mean, prompts=prompts)
        self.packing_s += time.monotonic() - start
        return packed

    def _attempt(self, compute: Callable[..., T], *args: Any) -> T | None:
        """Return what is computed; where the path fails, leave it for chains and return None.

        What it held is free when that is back. Chains that follow when weights have moved, with a ratio to the
        trainer's own policy, take it as it is by then. Where other ranks wait in the same forward, it is raised.
        """
        try:
            return compute(*args)
        except PathFailedError as error:
            if self.ranks.size > 1:
                raise
            reason = str(error)
        self.paths.give_up(reason)
        return None

    def _check_positions(self, step: Step) -> None:
        limit = getattr(self.policy.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and step.longest_path > limit:
            raise UserError(
                f"step {self.step + 1}: a path of {step.longest_path} tokens, and model.path has positions for "
                f"{limit}; lower rollout.max_context_tokens"
            )

    def _recomputed(self, packed: list[Layout]) -> list[list[Tensor] | None]:
        """The trainer's own log-probabilities of each mini-batch, a micro-batch each, before any update.

        None for those that need no forward of their own: a single update of a step computes them itself, unless its
        adapters drop out, which those that sampled did not.
        """
        is_single = len(packed) * self.config.train.num_epochs == 1
        if not self.loss.recomputes or (is_single and not self._drops_out):
            return [None] * len(packed)
        path = self.paths.path
        with blaming(path), self.policy.ready(path):
            return [[self.policy.log_probs(batch, path) for batch in self._batches(layout)] for layout in packed]

    def _batches(self, layout: Layout) -> Iterator[TrainBatch]:
        """What is forwarded of a mini-batch: all that has targets; on ranks, this rank's share."""
        device = self.policy.device
        return (
            idle_batch(device) if micro is None else to_batch(micro, device)
            for micro in self.paths.micro_batches(layout)
        )

    def _optimizer_step(
        self, layout: Layout, recomputed: list[Tensor] | None, history: list[dict[str, float]]
    ) -> Literal[True]:
        """Take one optimizer step, if a token is trained, and add its metrics.

        Raises PathFailedError before any weight moves.
        """
        num_weighted = layout.weighted_tokens
        if num_weighted == 0:
            return True
        z = denominator(self.loss, layout)
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        with blaming(self.paths.path), self.policy.ready(self.paths.path):
            for number, batch in enumerate(self._batches(layout)):
                add(sums, self._backward(batch, z, None if recomputed is None else recomputed[number]))
        parameters = self.policy.trained_parameters().values()
        sums = self.policy.residence.clip(parameters, sums, self.config.optimizer.max_grad_norm)
        metrics = means(sums, num_weighted)
        self._check_finite(metrics)
        self.is_whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # they are as large as the weights, and the engine may sample next
        history.append(metrics)
        return True

    def _backward(self, batch: TrainBatch, z: float, recomputed: Tensor | None) -> dict[str, Tensor]:
        """Add the micro-batch's share of the gradient; return its sums over tokens, each 0-dimensional."""
        path, is_idle = self.paths.path, self.ranks.size > 1 and batch is idle_batch(self.policy.device)
        loss = BatchLoss(self.loss, self.policy, batch, path, z, recomputed)
        objective = nothing if is_idle else loss.objective
        result = self.policy.backward(batch, path, objective, is_local=self.loss.ratio == "token")
        terms = loss.terms(result.logprobs, result.entropy)
        before_update = result.logprobs if recomputed is None else recomputed
        sums = token_sums(batch, result, terms, before_update, has_kl=self.loss.kl_coef > 0)
        return {name: torch.zeros_like(total) for name, total in sums.items()} if is_idle else sums

    def _check_finite(self, metrics: dict[str, float]) -> None:
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise UserError(
                f"step {self.step + 1}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; "
                "stopped before this update; go on from the last checkpoint with a lower "
                'optimizer.learning_rate, or with model.dtype = "float32"'
            )

    def _set_learning_rate(self, epoch: int, position: int) -> None:
        per_epoch = minibatches_per_epoch(self.config)
        index = (self.step * self.config.train.num_epochs + epoch) * per_epoch + min(position, per_epoch - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, index)
