"""`[reward]` of the settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from treegrpo_cli.config.sections.base import Fraction, Seconds, Section

MAX_FLIPPED = 1e9


class RewardConfig(Section):
    """The outcome reward of a leaf: the weighted sum of these functions. If one returns None, the leaf is unscored."""

    functions: list[str] = Field(default_factory=lambda: ["exact_match"], min_length=1)
    """Functions whose weighted sum is the reward of a leaf. `exact_match`, `f1`, `format` (exact match with format
    terms), `environment` (what its steps gave, summed), or your own as `package.module:name` or `file.py:name`, in
    TRL's or verl's signature."""
    weights: list[float] = Field(default_factory=list)
    """Weights of `functions`, one for each, in the same order. Empty gives each the weight 1."""
    eval_function: str = ""
    """The function that evaluations in `train` use in place of `functions`; empty means the same ones. Set it where
    training rewards form and you want to see only correctness."""
    timeout_s: Seconds = 60.0
    """Seconds that a call of your own function may take. Rollouts that it does not answer for have no reward and are
    left out."""
    structure: Fraction = 0.2
    """Of `format`: what a well-formed rollout with a wrong answer gets, and what a malformed one with a right answer
    loses."""
    final_format: Fraction = 0.1
    """Of `format`: what a malformed rollout with a wrong answer gets; one without an answer gets 0."""
    retrieval: Fraction = 0.0
    """Of `format`: what is added to `structure` if a tool has shown an accepted answer."""
    flip: Fraction = 0.0
    """Chance that a leaf's reward is flipped, 1 to 0: noise, to see how an estimator copes with it. `seed`
    and the leaf's place decide which; trees keep the true rewards too. Evaluations are never flipped."""
    flip_low: Annotated[float, Field(ge=-MAX_FLIPPED, le=MAX_FLIPPED, allow_inf_nan=False)] = 0.0
    """The lowest reward, for `flip`: a flipped reward R becomes `flip_low` + `flip_high` - R."""
    flip_high: Annotated[float, Field(ge=-MAX_FLIPPED, le=MAX_FLIPPED, allow_inf_nan=False)] = 1.0
    """The highest reward, for `flip`; it is above `flip_low`."""

    @property
    def evaluated(self) -> RewardConfig:
        """What evaluations while training are judged by."""
        one = {"functions": [self.eval_function], "weights": []}
        return self.model_copy(update=one) if self.eval_function else self

    @model_validator(mode="after")
    def _one_weight_a_function(self) -> RewardConfig:
        if self.flip_low >= self.flip_high:
            raise ValueError(f"flip_low is {self.flip_low:g}, flip_high only {self.flip_high:g}")
        if self.weights and len(self.weights) != len(self.functions):
            raise ValueError(f"weights has {len(self.weights)} entries, functions has {len(self.functions)}")
        if twice := [name for name in self.functions if self.functions.count(name) > 1]:
            raise ValueError(f"functions names {twice[0]} twice; give it a weight")
        return self
