"""`[scale]` + a model's configuration -> what cannot be, found before Ray is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treegrpo_cli.errors import Problems, UserError
from treegrpo_cli.models.pretrained import read_model_config
from treegrpo_cli.samplers import named, runs_here

if TYPE_CHECKING:
    from treegrpo_cli.config import Config


def check_engines(config: Config) -> None:
    """Raise Problems where engines and ranks under Ray cannot be as they are asked for."""
    scale, engine = config.scale, config.sampler.engine
    lines = []
    if scale.tensor_parallel > 1:
        if engine != "auto" and runs_here(engine) and (reason := named(engine).why_not_parallel()):
            lines.append(reason)
        if config.rollout.distinct_siblings:
            lines.append(
                "rollout.distinct_siblings: an engine of several processes cannot; set scale.tensor_parallel = 1"
            )
        lines += heads_problem(config)
    if scale.placement == "colocated" and config.sampler.sleep is False:
        lines.append(
            'sampler.sleep: a colocated engine sleeps while its rank trains; set sampler.sleep = "auto", or '
            'scale.placement = "separate"'
        )
    if lines:
        raise Problems(lines)


def heads_problem(config: Config) -> list[str]:
    """Say where an engine cannot deal the model's attention heads to its GPUs."""
    try:
        text = read_model_config(config.model.path).get_text_config()
    except UserError:
        return []  # said elsewhere
    heads, parts = getattr(text, "num_attention_heads", 0) or 0, config.scale.tensor_parallel
    if heads % parts == 0:
        return []
    return [f"scale.tensor_parallel: the model's {heads} attention heads cannot be dealt to {parts} GPUs evenly"]
