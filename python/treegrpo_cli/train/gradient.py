"""Forest + scores + Config -> the gradient of a step's loss, prompt by prompt, without an optimizer step.

What `Trainer.update` would step by at the first update behind a rollout, before it clips: the same layouts, path, loss
and denominators. A mini-batch's Z is known before its forwards, so that it is a sum over its prompts and each can be
computed alone; prompts of one mini-batch add up to its gradient, all of them to the sum of the step's gradients at one
policy. Adapters do not drop out here: two calls give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli._core import Forest, Layout, Scores
from treegrpo_cli.errors import UserError
from treegrpo_cli.train.batch import layouts
from treegrpo_cli.train.batch_loss import denominator
from treegrpo_cli.train.counts import Step
from treegrpo_cli.train.networks import without_dropout
from treegrpo_cli.train.path_errors import blaming
from treegrpo_cli.train.schedule import prompts_per_minibatch
from treegrpo_cli.train.sketch import flat
from treegrpo_cli.train.trainer import Trainer

Reduce = Callable[[Iterable[Tensor]], Tensor]
"""The gradient of each trained parameter, in their order -> the vector that is kept of it."""


class GradientTrainer(Trainer):
    """A trainer that takes no steps: `gradients` of as many rollouts as are asked for, at one policy."""

    @property
    def num_parameters(self) -> int:
        """Entries of a whole gradient."""
        return sum(parameter.numel() for parameter in self.policy.trained_parameters().values())

    def gradients(
        self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None = None, reduce: Reduce = flat
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (prompt, what it adds to the gradient) for each of `prompts`, all of the forest's by default.

        The vector is [D] float32 on the CPU, the parameters of `policy.trained_parameters()` behind each other, or
        what `reduce` makes of them. A prompt without a trained token has zeros. Raises UserError where memory runs out
        or a path is longer than the model's positions.
        """
        numbers = _all_prompts(forest) if prompts is None else prompts
        size = prompts_per_minibatch(self.config)
        try:
            for start in range(0, len(numbers), size):
                yield from self._of_minibatch(forest, scores, numbers[start : start + size], reduce)
        except (torch.OutOfMemoryError, MemoryError):
            raise UserError(
                f"out of memory; lower train.microbatch_tokens, now {self.config.train.microbatch_tokens}, or "
                "sampler.gpu_memory_utilization, or set model.gradient_checkpointing = true"
            ) from None
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _of_minibatch(
        self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32], reduce: Reduce
    ) -> Iterator[tuple[int, Tensor]]:
        whole = self._layouts(forest, scores, prompts, shared=False)
        z = denominator(self.loss, whole[0]) if whole else 0.0
        packed = self._one_by_one(forest, scores, prompts, shared=True)
        step = Step.of(packed, self.config.train.microbatch_tokens, self.policy.device)
        self._check_positions(step)
        self.paths.take(step, packed)
        if not self.paths.path.shares:
            packed = self._one_by_one(forest, scores, prompts, shared=False)
        for position, prompt in enumerate(prompts.tolist()):
            vector = self._attempt(self._of_layout, packed[position], z, reduce)
            if vector is None:  # the path failed: chains from here on
                packed = self._one_by_one(forest, scores, prompts, shared=False)
                vector = self._of_layout(packed[position], z, reduce)
            yield prompt, vector

    def _of_layout(self, layout: Layout, z: float, reduce: Reduce) -> Tensor:
        """The gradient of one prompt's loss over `z`. Raises PathFailedError."""
        self.optimizer.zero_grad(set_to_none=True)
        if layout.weighted_tokens:
            with blaming(self.paths.path), without_dropout(self.policy.network):
                for batch in self._batches(layout):
                    self._backward(batch, z, None)
        return reduce(
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self.policy.trained_parameters().values()
        )

    def _one_by_one(self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32], *, shared: bool) -> list[Layout]:
        row_mean, weight = self.loss.denominator == "sequence-mean", self.loss.prefix_weight
        return layouts(forest, scores, weight, 1, shared=shared, row_mean=row_mean, prompts=prompts)


def _all_prompts(forest: Forest) -> NDArray[np.uint32]:
    return np.array(list(dict.fromkeys(forest.columns()["prompt"].tolist())), dtype=np.uint32)
