"""The trainer in this process, as a run asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.config.overlap import computes_in_one_process
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.train.arriving import check_merged
from treegrpo_cli.train.checkpoint import load_checkpoint, save_checkpoint
from treegrpo_cli.train.ranks import ALONE, Ranks
from treegrpo_cli.train.threads import Threads
from treegrpo_cli.train.trainer import Metrics, Trainer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from treegrpo_cli._core import Forest, Scores
    from treegrpo_cli.config import Config
    from treegrpo_cli.samplers.base import Sampler


class LocalTrainer(Trainer):
    """A `StepTrainer`: the trainer, with its threads, its checkpoints and the way of its weights to the engine."""

    def __init__(
        self,
        config: Config,
        say: Callable[[str], None] = lambda _: None,
        tokenizer: Any = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(config, say, tokenizer, ranks=ranks)
        overlaps = config.scale.max_staleness > 0 and computes_in_one_process(config)
        self._threads = Threads(config.train.num_threads, self.policy.device, say, num_left=int(overlaps))

    @property
    def dtype(self) -> str:
        """The dtype that the policy computes in."""
        return str(self.policy.dtype).removeprefix("torch.")

    @property
    def trained(self) -> Trained:
        """The adapter, or all weights."""
        return Trained(self.policy.adapter())

    def check(self, sampler: Sampler) -> None:
        """Raise UserError where adapters must be merged, and rounding would keep too little of them."""
        if not sampler.takes_adapter:
            check_merged(self.policy, self.config)

    def update(self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None = None) -> Metrics:
        """Train on these prompts of a step's forest, with as many threads as the machine has free."""
        with self._threads.taken():
            return super().update(forest, scores, prompts)

    def send_weights(self, sampler: Sampler) -> None:
        """Hand the sampler all weights, or the adapter where it takes that unmerged."""
        adapter = self.policy.adapter()
        if adapter is not None and sampler.takes_adapter:
            sampler.update_adapter(adapter, self.step)
        else:
            sampler.update_weights(self.state_dict_for_sampler(), self.step)

    def save(self, output_dir: Path, state: dict[str, Any]) -> Path:
        """Write a checkpoint of this step."""
        return save_checkpoint(output_dir, self, state)

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint; return the run's own state."""
        return load_checkpoint(path, self)

    def close(self) -> None:
        """Nothing to end: it is all in this process."""
