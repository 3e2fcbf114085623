"""A trainer and a case -> its optimizer step, and the step that the chains ask for, each row computed alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from treegrpo_cli.train.trainer import Trainer

from tests.chainwise import Rows, chain_loss, random_trees
from tests.families import VOCABULARY, relative


@dataclass
class Case:
    """What is computed: a loss, the advantages in it, and which random forest; `clips` must all be at work."""

    loss: dict[str, Any]
    estimator: str
    seed: int
    clips: tuple[str, ...] = ("low", "high")
    options: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    def rows(self) -> Rows:
        return Rows.of(random_trees(self.seed, VOCABULARY), self.estimator, **self.options)


@dataclass
class Update:
    """loss, gradients and updated weights of one optimizer step; size: of the terms that the loss adds up."""

    loss: float
    grads: dict[str, Tensor]
    weights: dict[str, Tensor]
    size: float = 0.0


def expected_update(trainer: Trainer, case: Case) -> Update:
    """One step of AdamW from the chains' gradient: its first moves by g / (|g| + eps), and matrices decay."""
    model = copy.deepcopy(trainer.policy.model)
    assert model.config._attn_implementation == "sdpa"
    result = chain_loss(model, trainer.policy.reference, case.rows(), trainer.loss, case.temperature)
    assert all(result.clipped[kind] for kind in case.clips), f"nothing tested: {result.clipped}"
    result.loss.backward()
    settings = trainer.config.optimizer
    grads, weights = {}, {}
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        decay = settings.weight_decay if weight.dim() >= 2 else 0.0
        move = weight.grad / (weight.grad.abs() + 1e-8) + decay * weight.detach()
        grads[name], weights[name] = weight.grad, weight.detach() - settings.learning_rate * move
    return Update(float(result.loss.detach()), grads, weights, result.size)


def actual_update(trainer: Trainer, case: Case) -> Update:
    rows = case.rows()
    with kept_gradients(trainer) as grads:
        metrics = trainer.update(rows.forest, rows.scores)
    weights = {name: weight.detach() for name, weight in trainer.policy.trained_parameters().items()}
    return Update(float(metrics["loss"]), grads, weights)


@contextmanager
def kept_gradients(trainer: Trainer) -> Iterator[dict[str, Tensor]]:
    """The gradients by which the block's last optimizer step moves: the trainer itself drops them."""
    grads: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        parameters = trainer.policy.trained_parameters()
        grads.update({name: weight.grad for name, weight in parameters.items() if weight.grad is not None})

    handle = trainer.optimizer.register_step_pre_hook(keep)
    yield grads
    handle.remove()


def assert_equal(actual: Update, expected: Update, tolerance: float, where: str) -> None:
    """In float32 weights are left out: where a gradient vanishes but for rounding, Adam moves by the sign of that."""
    assert abs(actual.loss - expected.loss) <= tolerance * expected.size, where
    assert actual.grads.keys() == expected.grads.keys(), where
    for name, grad in expected.grads.items():
        assert relative(actual.grads[name], grad) <= tolerance, f"{where}: gradient of {name}"
        if grad.dtype == torch.float64:
            assert relative(actual.weights[name], expected.weights[name]) <= tolerance, f"{where}: {name}"
