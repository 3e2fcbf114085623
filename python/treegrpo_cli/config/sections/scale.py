"""`[scale]` of the settings."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import model_validator

from treegrpo_cli.config.sections.base import Count, CountOrNone, Section


class ScaleConfig(Section):
    """More than one process: engines and trainer ranks under Ray, on one machine or many."""

    engines: CountOrNone = 0
    """Engines that sample side by side, each a process of its own under Ray. 0 keeps the one engine in this process."""
    tensor_parallel: Count = 1
    """GPUs of one machine that an engine spreads its model over."""
    trainer_ranks: CountOrNone = 0
    """Processes that train together under Ray, the model sharded between them by FSDP2, one GPU each. 0 trains in this
    process."""
    placement: Literal["separate", "colocated"] = "separate"
    """Where engines and trainer ranks run. `separate`: each on GPUs of its own. `colocated`: an engine and a rank share
    a GPU, and the engine sleeps while the rank trains."""
    max_staleness: CountOrNone = 0
    """How many steps the weights that begin a tree may be behind those that train on it. 0 grows and trains in turns,
    which is on-policy and exact. With 1 the next step's trees grow while this one trains, with 2 those of the next two;
    unfinished trees go on under new weights, turn by turn. A step has the same prompts at any value, but which weights
    sample a turn depends on how long things take. Selections that look at earlier rewards see those of the steps that
    had trained when their own step began. A budget of the whole run counts the steps that trained; trees begun beyond
    the last step are thrown away."""
    address: str = ""
    """Address of the Ray cluster to join, host:port as `ray start` prints it. Empty joins that of RAY_ADDRESS, or, if
    that is not set, starts Ray on this machine for this run."""

    @property
    def uses_ray(self) -> bool:
        """Whether a part of the run is a process of its own."""
        return bool(self.engines or self.trainer_ranks)

    @property
    def cluster(self) -> str:
        """The address of the cluster to join, `host:port` or `auto`; empty where one is started for this run."""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        return "" if address == "local" else address

    @model_validator(mode="after")
    def _each_needs_the_other(self) -> ScaleConfig:
        if self.tensor_parallel > 1 and not self.engines:
            raise ValueError(
                f"tensor_parallel = {self.tensor_parallel} is for engines under Ray: set scale.engines = 1 or more"
            )
        if self.placement == "colocated" and not (self.engines and self.trainer_ranks):
            raise ValueError('scale.placement = "colocated" needs scale.engines and scale.trainer_ranks')
        if self.placement == "colocated" and self.engines * self.tensor_parallel != self.trainer_ranks:
            raise ValueError(
                'scale.placement = "colocated" gives each rank the GPU of an engine: set scale.trainer_ranks = '
                f"{self.engines * self.tensor_parallel} (scale.engines times scale.tensor_parallel), got "
                f"{self.trainer_ranks}"
            )
        if self.placement == "colocated" and self.max_staleness:
            raise ValueError(
                "scale.max_staleness grows trees while ranks train, and a colocated engine sleeps then: set "
                'scale.placement = "separate"'
            )
        return self
