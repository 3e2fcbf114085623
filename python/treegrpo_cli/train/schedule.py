"""Config -> AdamW over the trained weights, and its learning rate from step to step."""

from __future__ import annotations

import math

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.train.policy import Policy


def make_optimizer(policy: Policy, config: Config) -> torch.optim.AdamW:
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


USEFUL_RATES = {"all weights": (1e-8, 1e-3), "adapters": (1e-6, 1e-2)}
"""Rates below which weights stay where they are, and above which a policy breaks."""


def rate_warning(config: Config) -> str | None:
    """Say where `optimizer.learning_rate` cannot work, or None."""
    rate, what = config.optimizer.learning_rate, "adapters" if config.model.lora_rank else "all weights"
    low, high = USEFUL_RATES[what]
    if low <= rate <= high:
        return None
    effect = "is too low to learn anything" if rate < low else "is so high that training breaks down"
    return f"warning: optimizer.learning_rate = {rate:g} {effect}; useful values for {what} are {low:g} to {high:g}"


def num_optimizer_steps(config: Config) -> int:
    """Return the optimizer steps of the whole run, which the schedule spans."""
    return config.train.num_steps * config.train.num_epochs * minibatches_per_epoch(config)


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


def prompts_per_minibatch(config: Config) -> int:
    """Return the prompts of an optimizer step."""
    return config.train.prompts_per_minibatch or config.train.prompts_per_step


def minibatches_per_epoch(config: Config) -> int:
    """Return the optimizer steps of one pass over a step's rollouts."""
    return math.ceil(config.train.prompts_per_step / prompts_per_minibatch(config))
