"""`[train]` of the settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from treegrpo_cli.config.sections.base import Count, CountOrNone, Fraction, NonNegativeInt, PositiveInt, Section


def _or_true(schema: dict[str, Any]) -> None:
    """Let the JSON schema take `true` too, which stands for a few."""
    number = {key: schema.pop(key) for key in ("type", "minimum", "maximum")}
    schema["anyOf"] = [number, {"const": True}]


class TrainConfig(Section):
    """The training loop."""

    num_steps: PositiveInt = 100
    """Steps of the run: rollouts, then updates, then new weights for the engine."""
    prompts_per_step: Count = 16
    """Prompts that trees are grown for in each step. More give a steadier gradient and cost as much more."""
    prompts_per_minibatch: CountOrNone = 0
    """Prompts whose rollouts one optimizer step learns from; 0 takes all of a step's. Fewer make several updates from
    one step's rollouts."""
    max_gen_batches: Count = 4
    """How many times `prompts_per_step` prompts a step draws at most, the first ones counted, with
    `advantage.dead_prompts = "refill"`."""
    num_epochs: Count = 1
    """How often a step's rollouts are trained on. Above 1, the clip of the loss comes into play."""
    microbatch_tokens: PositiveInt = 16384
    """Most tokens of one forward pass, padding included. It changes memory and time, never the result; a tree that is
    larger is cut at branches."""
    attention_path: Literal["auto", "chains", "runs", "flex", "dense", "depth-first"] = "auto"
    """How shared prefixes are computed. `auto` chooses by shape and memory, `chains` repeats them in every row, the
    others compute each token once."""
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads of an update on a CPU. 0 takes `OMP_NUM_THREADS` if it is set, else all cores, or one if other programs
    compute too. Runs can be equal to the bit only with the same number."""
    eval_steps: NonNegativeInt = 0
    """Evaluate on `data.eval` every so many steps, before the first and after the last; 0 is never."""
    eval_tokens: NonNegativeInt = 0
    """Evaluate each time that so many more tokens were generated, and at both ends; 0 goes by `eval_steps`."""
    eval_samples: CountOrNone = 0
    """Chains that an evaluation samples for each question, at `rollout.temperature`; 0 plays a single greedy one."""
    save_steps: NonNegativeInt = 10
    """Write a checkpoint every so many steps, after the last, and where the run ends early; 0 writes none in
    between."""
    max_checkpoints: NonNegativeInt = 2
    """Newest checkpoints that are kept; older ones are removed. 0 keeps all."""
    save_trees: bool = True
    """Write the trees of each step to the run's folder, where `treegrpo inspect-tree` reads them."""
    max_failed_fraction: Fraction = 0.5
    """End the run if a larger share of a step's leaves, or of a rollout's, failed by prompt, tool or reward."""
    log_completions: Annotated[CountOrNone, Field(json_schema_extra=_or_true)] = 0
    """Completions of each step that are printed with their rewards and sent to `report_to`; `true` means 4, 0 none."""

    @property
    def evaluates(self) -> bool:
        """Whether there are evaluations on the way."""
        return bool(self.eval_steps or self.eval_tokens)

    @field_validator("log_completions", mode="before")
    @classmethod
    def _true_is_a_few(cls, value: Any) -> Any:
        return 4 if value is True else value

    @model_validator(mode="after")
    def _minibatches_fit(self) -> TrainConfig:
        if self.prompts_per_minibatch > self.prompts_per_step:
            raise ValueError(
                f"prompts_per_minibatch is {self.prompts_per_minibatch}, prompts_per_step only {self.prompts_per_step}"
            )
        return self
