"""TOML or YAML file + dotted overrides -> Config: every setting, its default and its limits.

The paper's letters: M `rollout.num_trees`, N `rollout.num_expansions`, L `rollout.num_rounds`,
K `rollout.num_kept_leaves`. Sizes are in tokens, durations in seconds.

A setting's meaning is the string below it: `treegrpo config`, the JSON schema, the reference page and the files of
`treegrpo init` have it from there. Its first sentence says what it is, the others what its values mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from treegrpo_cli.config.overlap import check_overlap
from treegrpo_cli.config.sections.advantage import AdvantageConfig
from treegrpo_cli.config.sections.base import NonNegativeInt, Section, one_or_many
from treegrpo_cli.config.sections.budget import BudgetConfig
from treegrpo_cli.config.sections.data import DataConfig
from treegrpo_cli.config.sections.environment import EnvironmentConfig
from treegrpo_cli.config.sections.limits import LimitsConfig
from treegrpo_cli.config.sections.loss import LossConfig
from treegrpo_cli.config.sections.model import ModelConfig
from treegrpo_cli.config.sections.optimizer import OptimizerConfig
from treegrpo_cli.config.sections.reward import RewardConfig
from treegrpo_cli.config.sections.rollout import RolloutConfig
from treegrpo_cli.config.sections.sampler import SamplerConfig
from treegrpo_cli.config.sections.scale import ScaleConfig
from treegrpo_cli.config.sections.selection import SelectionConfig
from treegrpo_cli.config.sections.train import TrainConfig

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 3500
"""Of file systems; the second leaves room for what stands in a run's folder."""
LORA_LEARNING_RATE = 1e-5
"""The default for adapters: they start from zero, and move less at the same rate than whole weights do."""


def _one_or_none(schema: dict[str, Any]) -> None:
    """Let the JSON schema take a single name, or `none`, too."""
    one_or_many(schema)
    schema["anyOf"][0] = {**schema["anyOf"][0], "enum": [*schema["anyOf"][0]["enum"], "none"]}


class Config(Section):
    """Everything that a run needs; saved with it as `config.toml`."""

    seed: NonNegativeInt = 0
    """Fixes the random choices of a run: the order of questions, the tokens that are drawn, and where trees branch.
    Runs that differ in the seed alone show how much of a result is chance."""
    output_dir: Annotated[str, Field(min_length=1)] = "runs/treegrpo"
    """Folder for what the run leaves: settings, metrics, trees and checkpoints. A folder that holds a run already is
    refused, unless `--resume` continues it."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, json_schema_extra=_one_or_none
    )
    """Where metrics go beside `metrics.jsonl`: `tensorboard`, `wandb` or `trackio`, one or several. Empty, or `none`,
    means nowhere else."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    selection: SelectionConfig = SelectionConfig()
    budget: BudgetConfig = BudgetConfig()
    sampler: SamplerConfig = SamplerConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    limits: LimitsConfig = LimitsConfig()
    scale: ScaleConfig = ScaleConfig()

    @property
    def prompts_wait(self) -> bool:
        """Whether the prompts of a step grow wave by wave, so that their trees depend on each other."""
        return self.rollout.allocation != "even" or self.rollout.rescue != "none" or self.budget.limits_steps

    @model_validator(mode="after")
    def _adapters_learn_at_a_rate_of_their_own(self) -> Config:
        if self.model.lora_rank and "learning_rate" not in self.optimizer.model_fields_set:
            rate = {"learning_rate": LORA_LEARNING_RATE}
            object.__setattr__(self, "optimizer", self.optimizer.model_copy(update=rate))
        return self

    @model_validator(mode="after")
    def _trees_grow_while_others_train(self) -> Config:
        if self.scale.max_staleness:
            check_overlap(self)
            object.__setattr__(self, "sampler", self.sampler.model_copy(update={"sleep": False}))
        return self

    @model_validator(mode="after")
    def _servers_are_started_by_others(self) -> Config:
        if self.scale.engines and self.sampler.engine == "server":
            raise ValueError('scale.engines starts engines here: set it to 0 beside sampler.engine = "server"')
        return self

    @model_validator(mode="after")
    def _turns_are_weighed_once(self) -> Config:
        from treegrpo_cli._core import describe_estimators

        weighing = {known["name"] for known in describe_estimators() if known["weighs"]}
        found = [term["estimator"] for term in self.advantage.score_terms if term["estimator"] in weighing]
        if found and self.loss.prefix_weight != 1:
            raise ValueError(f"{found[0]} weighs turns itself: loss.prefix_weight is 1 beside it")
        if found and self.loss.denominator == "sequence-mean":
            raise ValueError(f'{found[0]} weighs turns itself: loss.denominator cannot be "sequence-mean" beside it')
        return self

    @model_validator(mode="after")
    def _weights_are_those_of_the_draws(self) -> Config:
        if self.rollout.num_rounds == 0:
            return self
        wanted = ("state-loo", "distinct")
        for term in self.advantage.score_terms:
            distinct = (term["estimator"], term["options"].get("siblings")) == wanted
            if self.rollout.distinct_siblings and not distinct:
                raise ValueError(
                    f"rollout.distinct_siblings beside {term['estimator']}, which takes siblings for independent; "
                    'set advantage.estimator = "state-loo" and advantage.siblings = "distinct"'
                )
            if distinct and not self.rollout.distinct_siblings:
                raise ValueError('advantage.siblings = "distinct" beside rollout.distinct_siblings = false')
        return self

    @field_validator("output_dir")
    @classmethod
    def _a_folder_can_have_this_name(cls, name: str) -> str:
        if not name.strip("/"):
            raise ValueError("a run cannot be written to /")
        if "\0" in name:
            raise ValueError("the name contains a NUL character")
        if any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/")) or len(name.encode()) > MAX_PATH_BYTES:
            raise ValueError("the name is too long for a folder")
        return name

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        return [] if names == ["none"] else names
