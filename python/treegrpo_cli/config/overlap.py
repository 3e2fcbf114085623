"""Settings under `scale.max_staleness`: what cannot go with trees that grow while the policy trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treegrpo_cli.config.settings import Config


def check_overlap(config: Config) -> None:
    """Raise ValueError, in one line, for settings that have no meaning where growth and updates overlap."""
    staleness = f"scale.max_staleness = {config.scale.max_staleness}"
    if config.sampler.sleep is True:
        raise ValueError(
            f"sampler.sleep = true beside {staleness}: an engine cannot sleep while trees grow; set "
            'sampler.sleep = "auto"'
        )
    for name in ("prompt_seconds", "step_seconds"):
        if getattr(config.budget, name):
            raise ValueError(
                f"budget.{name} beside {staleness}: growth waits for weights and evaluations and shares the machine "
                "with updates, so seconds do not measure it; set a budget of tokens, tool calls or leaves"
            )
    if config.loss.old_logprobs == "recomputed" and config.loss.importance_clip == 0:
        raise ValueError(
            f'loss.importance_clip = 0 with loss.old_logprobs = "recomputed" beside {staleness}: nothing makes up for '
            'the age of trees; set loss.importance_clip = "auto" or loss.old_logprobs = "sampler"'
        )
    if computes_in_one_process(config) and config.model.lora_rank and config.model.lora_dropout:
        raise ValueError(
            f"model.lora_dropout beside {staleness}: it draws from the one random state of this process, which the "
            "engine uses meanwhile; set model.lora_dropout = 0, or scale.engines or scale.trainer_ranks"
        )


def computes_in_one_process(config: Config) -> bool:
    """Whether the policy is trained in the process that it is sampled in."""
    has_engine = not config.scale.engines and config.sampler.engine != "server"
    return has_engine and not config.scale.trainer_ranks
