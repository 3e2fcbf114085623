"""`[advantage]` of the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from treegrpo_cli.config.sections.base import Seconds
from treegrpo_cli.terms import read_term

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm


class AdvantageConfig(BaseModel):
    """How rewards become advantages; the estimator's options go next to its name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    estimator: str = "tree-grpo"
    """The estimator that turns rewards into advantages, by name or as your own function. `treegrpo estimators` lists
    the names. Your own: `package.module:name` or `file.py:name`, a function of columns that returns an advantage for
    each node; its keyword arguments are its options. Empty where there are `terms`."""
    dead_prompts: Literal["keep", "drop", "refill"] = "keep"
    """What happens to prompts whose rewards are all equal. `keep` leaves their tokens and rows in the denominator and
    the KL, `drop` leaves them out, `refill` draws fresh prompts in their place (DAPO's dynamic sampling), as far as
    `train.max_gen_batches` goes."""

    terms: list[dict[str, Any]] = Field(default_factory=list)
    """A weighted sum of estimators, in place of `estimator`. Each `[[advantage.terms]]` has an `estimator`, a `weight`
    (1) and the estimator's options; an option that is itself called weight goes in a table `options`. With `mask =
    "tool-calls"` a term counts only for the tokens of tool calls."""
    timeout_s: Seconds = 60.0
    """Seconds that a call of your own estimator may take; it is called once a prompt."""

    @property
    def options(self) -> dict[str, Any]:
        """The estimator's options as given."""
        return dict(self.model_extra or {})

    @property
    def score_terms(self) -> list[ScoreTerm]:
        """What advantages are the sum of, as the core takes it."""
        alone: list[ScoreTerm] = [{"estimator": self.estimator, "options": self.options}]
        return [read_term(term) for term in self.terms] or alone

    @model_validator(mode="after")
    def _estimators_and_options_exist(self) -> AdvantageConfig:
        from treegrpo_cli._core import Forest

        if self.terms:
            if self.estimator not in ("", type(self).model_fields["estimator"].default) or self.options:
                raise ValueError("an estimator and its options beside terms: they stand in a term of their own")
            object.__setattr__(self, "estimator", "")
        elif "mask" in self.options and ":" not in self.estimator:
            raise ValueError("a mask stands in a term: write the estimator and its mask under [[advantage.terms]]")
        ours = [term for term in self.score_terms if ":" not in term["estimator"]]
        if ours:
            Forest().score(ours)
        return self
