"""Config -> the trainer and the sampler of a run, in this process.

Loop and session know the two by `StepTrainer` and `samplers.base.Sampler` alone; `Parts` says who stands behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from treegrpo_cli.rollout.player import open_sampler
from treegrpo_cli.samplers.base import Trained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from treegrpo_cli._core import Forest, Scores
    from treegrpo_cli.config import Config
    from treegrpo_cli.samplers.base import Sampler

Say = Callable[[str], None]
Metrics = dict[str, float | str]


class StepTrainer(Protocol):
    """What a run asks of its trainer.

    `step` counts the rollout steps that were trained on, `is_whole` is False while weights are between two of them,
    `packing_s` are the seconds that laying out took in the last update.
    """

    step: int
    is_whole: bool
    packing_s: float

    @property
    def dtype(self) -> str:
        """The dtype that the policy computes in, resolved: `float32` or `bfloat16`."""
        ...

    @property
    def trained(self) -> Trained:
        """What an engine is started for."""
        ...

    def check(self, sampler: Sampler) -> None:
        """Raise UserError where this sampler cannot take what is trained."""
        ...

    def update(self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None = None) -> Metrics:
        """Train on these prompts of a step's forest and return the step's metrics."""
        ...

    def send_weights(self, sampler: Sampler) -> None:
        """Hand the sampler the policy's weights, with `step` as their version."""
        ...

    def save(self, output_dir: Path, state: dict[str, Any]) -> Path:
        """Write `output_dir/checkpoint-N`, N = `step`, with the run's own `state`; return its path."""
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; return the run's own state."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


class Parts:
    """Who stands behind a run: here, all of it is in this process."""

    def open_trainer(self, config: Config, say: Say, tokenizer: Any) -> StepTrainer:
        """Load the policy that is trained; `tokenizer` is kept with its checkpoints."""
        from treegrpo_cli.run.local_trainer import LocalTrainer

        return LocalTrainer(config, say, tokenizer)

    def open_sampler(self, config: Config, log_path: Path | None, say: Say, trained: Trained | None = None) -> Sampler:
        """Start the engine; `trained`: what is sent to it while it runs, None where nothing is."""
        return open_sampler(config, log_path, say, trained)
