"""`[loss]` of the settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from treegrpo_cli.config.sections.base import Fraction, NonNegative, Positive, Section

MAX_RATIO = 1e9
"""Of a bound on a ratio of probabilities: more is none, and float32 should hold it."""


Bound = Annotated[
    float | Literal["auto"],
    WithJsonSchema(
        {"anyOf": [{"const": "auto"}, {"const": 0}, {"type": "number", "exclusiveMinimum": 1, "maximum": MAX_RATIO}]}
    ),
]
"""`auto`, 0 for none, or a number above 1."""


class LossConfig(Section):
    """The clipped objective. `auto` goes by the dtype: in bfloat16, engine and trainer round differently."""

    ratio: Literal["token", "turn", "sequence"] = "token"
    """What the ratio to the old policy is taken of: each `token` by itself, or the mean of its `turn` or of its whole
    `sequence` (GSPO)."""
    old_logprobs: Literal["auto", "sampler", "recomputed"] = "auto"
    """Who computes the old policy's log-probabilities: the `sampler` while it generates, or the trainer before a step's
    first update (`recomputed`). `auto`: recomputed where the dtype is not float32 or `importance_clip` is above 0, else
    the sampler's. Under `scale.max_staleness` it is recomputed, or the sampler's where `importance_clip` is 0."""
    importance_clip: Bound = "auto"
    """Upper bound of a token's importance weight, which is the old policy's probability over the sampler's. 0 uses no
    weights. `auto`: 2 for recomputed `old_logprobs` where the dtype is not float32 or `scale.max_staleness` is above 0,
    else 0."""
    clip_low: Fraction = 0.2
    """How far the ratio may fall below 1 before a token has no gradient any more."""
    clip_high: Annotated[float, Field(ge=0, le=MAX_RATIO, allow_inf_nan=False)] = 0.2
    """How far the ratio may rise above 1 before a token has no gradient any more. DAPO sets it above `clip_low`."""
    dual_clip: Bound = "auto"
    """Upper bound of the ratio where the advantage is negative; 0 sets none. `auto`: 3 where the dtype is not float32,
    else 0."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL to the reference, which is the model at the start (k3 estimate); 0 loads no reference."""
    kl_ratio: bool = False
    """Multiply the KL estimate by the ratio, through which its gradient is that of the KL itself (DeepSeek-V3.2).
    Counts only where `kl_coef` is above 0."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus, which keeps the policy from settling too early; 0 adds none. It stands under
    `denominator` as all terms do: under `constant` it grows with the length of rows, and rows of 100 tokens, divided by
    1000, get a tenth of it."""
    denominator: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    """What the sum over an optimizer step's tokens is divided by. `token-mean`: their number (DAPO). `sequence-mean`:
    each row by its own tokens, and then by the number of rows (GRPO's equation, and GSPO's with `ratio = "sequence"`).
    `constant`: `denominator_constant` for each row (Dr. GRPO)."""
    denominator_constant: Positive = 1000.0
    """Tokens by which each row is divided where `denominator = "constant"`."""
    prefix_weight: Fraction = 1.0
    """How much more a turn weighs if many leaves lie below it: p in |L(n)|^p, with |L(n)| leaves. 1 counts a turn once
    for each leaf, 0 once in all. `denominator = "sequence-mean"` needs 1."""

    @field_validator("dual_clip", "importance_clip", mode="before")
    @classmethod
    def _a_bound_is_above_one(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            return 0.0
        if is_number and value > MAX_RATIO:
            raise ValueError(f"expected at most {MAX_RATIO:g}, or 0 for no bound")
        if value == "auto" or (is_number and (value == 0 or value > 1)):
            return value
        raise ValueError("expected a number above 1, 0 (off) or auto")

    @model_validator(mode="after")
    def _settings_fit_together(self) -> LossConfig:
        if self.old_logprobs == "sampler" and self.importance_clip not in ("auto", 0):
            raise ValueError(
                'importance_clip weighs what is recomputed, and with old_logprobs = "sampler" the ratio itself is to '
                'the sampler; set old_logprobs = "recomputed" or importance_clip = 0'
            )
        if self.denominator == "sequence-mean" and self.prefix_weight != 1:
            raise ValueError(
                'denominator = "sequence-mean" gives every row the same weight, and prefix_weight = '
                f"{self.prefix_weight:g} takes some from rows that share turns; set prefix_weight = 1"
            )
        return self
