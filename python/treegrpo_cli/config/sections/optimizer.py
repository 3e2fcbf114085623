"""`[optimizer]` of the settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from treegrpo_cli.config.sections.base import Fraction, NonNegative, NonNegativeInt, Positive, Section


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    learning_rate: Positive = 1e-6
    """Learning rate of AdamW, at the end of its warm-up. Unless set it is 1e-6, and 1e-5 with adapters
    (`model.lora_rank`)."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW, on matrices only; 0 is none."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """How slowly the mean of gradients moves in AdamW."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """How slowly the mean of squared gradients moves in AdamW."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps in which the learning rate rises to its full height; 0 goes by `warmup_ratio`."""
    warmup_ratio: Fraction = 0.0
    """Warm-up as a share of all optimizer steps; used where `warmup_steps` is 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after its warm-up: stays `constant`, or falls towards 0 at the end of the run,
    `linear` or as a `cosine`."""
    max_grad_norm: Positive = 1.0
    """Longest gradient of an optimizer step; a longer one is scaled down to it."""
