"""Chain rows + Config -> updated weights and their metrics: one rollout step's optimizer steps.

    for every epoch, for every mini-batch of prompts:
        Z of the whole mini-batch
        for every micro-batch of tokens: forward, loss / Z, backward
        clip, step

Z is known before the first forward, so the size of micro-batches changes memory and never the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from treegrpo_cli.batch import ChainRows, Row, microbatches, minibatches, pad, rows_by_prompt, weighted_tokens
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.loss import token_terms
from treegrpo_cli.policy import Policy
from treegrpo_cli.types import TrainBatch


class Trainer:
    """Holds policy, reference, optimizer and schedule; `step` counts the rollout steps that were trained on.

    Raises UserError for settings that cannot be trained with.
    """

    def __init__(self, config: Config) -> None:
        _check_whole_distribution(config)
        torch.manual_seed(config.seed)  # adapters start from it, and LoRA's dropout goes on from it
        self.config = config
        self.policy = Policy(config)
        self.optimizer = _make_optimizer(self.policy, config)
        self.step = 0

    def update(self, parts: Sequence[ChainRows]) -> dict[str, float]:
        """Train on the rows of one rollout step and return its metrics.

        `parts` hold the step's rows, all prompts in one part or one part a prompt; a prompt that is left
        out counts nowhere. Rows without a trained token leave the weights alone.
        Raises UserError where memory runs out or the loss is not finite; the weights then stay as they
        were before the failing optimizer step.
        """
        prompts = rows_by_prompt(parts)
        train = self.config.train
        history: list[dict[str, float]] = []
        try:
            for epoch in range(train.num_epochs):
                for position, rows in enumerate(minibatches(prompts, _prompts_per_minibatch(self.config))):
                    self._set_learning_rate(epoch, position)
                    history += self._optimizer_step(rows)
        except torch.OutOfMemoryError:
            raise UserError(
                f"step {self.step + 1}: out of memory; lower train.microbatch_tokens, now "
                f"{train.microbatch_tokens}, or sampler.gpu_memory_utilization, or set "
                "model.gradient_checkpointing = true"
            ) from None
        self.step += 1
        return self._summary(history)

    def state_dict_for_sampler(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole model in `model.dtype`, named as in its `state_dict()`, LoRA merged."""
        return self.policy.weights(self.policy.dtype)

    def _optimizer_step(self, rows: Sequence[Row]) -> list[dict[str, float]]:
        """Take one optimizer step; return its metrics, or nothing where no token is trained."""
        loss_config = self.config.loss
        num_weighted = weighted_tokens(rows)
        if num_weighted == 0:
            return []
        is_mean = loss_config.denominator == "token-mean"
        z = num_weighted if is_mean else loss_config.denominator_constant * len(rows)
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for micro in microbatches(rows, self.config.train.microbatch_tokens):
            batch = pad(micro, self.policy.device)
            if batch.loss_mask.any():
                _add(sums, self._backward(batch, z))
        parameters = self.policy.trained_parameters().values()
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.optimizer.max_grad_norm))
        metrics = _step_metrics(sums, num_weighted) | {"grad_norm": grad_norm}
        self._check_finite(metrics)
        self.optimizer.step()
        return [metrics]

    def _backward(self, batch: TrainBatch, z: float) -> dict[str, Tensor]:
        """Add the micro-batch's share of the gradient; return its sums over tokens, each 0-dimensional."""
        loss_config, mask = self.config.loss, batch.loss_mask
        weights, sampling_logprobs = batch.weights[mask], batch.sampling_logprobs[mask]
        policy_logprobs, entropy = self.policy.logprobs(batch)
        terms = token_terms(
            policy_logprobs,
            sampling_logprobs,
            batch.advantages[mask],
            weights,
            self.policy.ref_logprobs(batch) if loss_config.kl_coef > 0 else None,
            clip_low=loss_config.clip_low,
            clip_high=loss_config.clip_high,
            dual_clip=loss_config.dual_clip,
            kl_coef=loss_config.kl_coef,
        )
        loss = -terms.objective.sum() / z
        loss.backward()  # type: ignore[no-untyped-call]
        difference = (policy_logprobs.detach() - sampling_logprobs).abs()
        sums = {
            "entropy": (weights * entropy).sum(),
            "clip_ratio/low_mean": (weights * terms.clipped_low).sum(),
            "clip_ratio/high_mean": (weights * terms.clipped_high).sum(),
            MISMATCH_MEAN: (weights * difference).sum(),
        }
        if loss_config.kl_coef > 0:
            sums["kl"] = (weights * terms.kl).sum()
        return {"loss": loss.detach(), MISMATCH_MAX: difference.max()} | sums

    def _check_finite(self, metrics: dict[str, float]) -> None:
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise UserError(
                f"step {self.step + 1}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; "
                "stopped before this update; go on from the last checkpoint with a lower "
                'optimizer.learning_rate, or with model.dtype = "float32"'
            )

    def _set_learning_rate(self, epoch: int, position: int) -> None:
        per_epoch = _minibatches_per_epoch(self.config)
        index = (self.step * self.config.train.num_epochs + epoch) * per_epoch + min(position, per_epoch - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, index)

    def _summary(self, history: Sequence[dict[str, float]]) -> dict[str, float]:
        """Mean over the optimizer steps; the engine's mismatch is that of the first, before any update."""
        rate = {"learning_rate": float(self.optimizer.param_groups[0]["lr"])}
        if not history:
            return {"loss": 0.0, "grad_norm": 0.0} | rate
        means = {name: sum(metrics[name] for metrics in history) / len(history) for name in history[0]}
        return means | {name: history[0][name] for name in (MISMATCH_MEAN, MISMATCH_MAX)} | rate


MISMATCH_MEAN = "sampling/sampling_logp_difference/mean"
MISMATCH_MAX = "sampling/sampling_logp_difference/max"
"""|policy - sampling| log-probability of a token before any update: how far engine and trainer are apart."""


def num_optimizer_steps(config: Config) -> int:
    """Return the optimizer steps of the whole run, which the schedule spans."""
    return config.train.num_steps * config.train.num_epochs * _minibatches_per_epoch(config)


def learning_rate(config: Config, index: int) -> float:
    """Return the learning rate of optimizer step `index`, counted from 0.

    Warm-up is linear and reaches the full rate at its last step; unlike in transformers' schedules its
    first step is not at 0, which would waste a rollout. Then constant, linear or cosine towards 0 at the
    step after the last.
    """
    settings, total = config.optimizer, num_optimizer_steps(config)
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * total)
    if index < warmup:
        return settings.learning_rate * (index + 1) / warmup
    progress = min(1.0, (index - warmup) / max(1, total - warmup))
    falls = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return settings.learning_rate * falls[settings.schedule]


def _prompts_per_minibatch(config: Config) -> int:
    return config.train.prompts_per_minibatch or config.train.prompts_per_step


def _minibatches_per_epoch(config: Config) -> int:
    return math.ceil(config.train.prompts_per_step / _prompts_per_minibatch(config))


def _make_optimizer(policy: Policy, config: Config) -> torch.optim.AdamW:
    """AdamW; weight decay falls on matrices, not on norms and biases."""
    settings = config.optimizer
    weights = list(policy.trained_parameters().values())
    return torch.optim.AdamW(
        [
            {
                "params": [weight for weight in weights if weight.dim() >= 2],
                "weight_decay": settings.weight_decay,
            },
            {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=policy.device.type == "cuda",
    )


def _check_whole_distribution(config: Config) -> None:
    """Refuse to sample from a part of the vocabulary: the ratio would compare two different distributions."""
    for key, value, whole in (("top_p", config.rollout.top_p, 1.0), ("top_k", config.rollout.top_k, 0)):
        if value != whole:
            raise UserError(f"rollout.{key}: training needs the whole distribution, set {key} = {whole}, got {value}")


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        if name not in sums:
            sums[name] = value
        else:
            sums[name] = torch.maximum(sums[name], value) if name == MISMATCH_MAX else sums[name] + value


def _step_metrics(sums: dict[str, Tensor], num_weighted: float) -> dict[str, float]:
    """Turn sums over tokens into means, weighted as in the loss."""
    whole = ("loss", MISMATCH_MAX)
    return {name: float(value) if name in whole else float(value) / num_weighted for name, value in sums.items()}
