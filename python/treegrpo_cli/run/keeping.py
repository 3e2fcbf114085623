"""Trainer + the run's folder -> checkpoints: written when they are due and at any end, read when a run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from treegrpo_cli.data.tasks import row_digest
from treegrpo_cli.errors import Stopped, said
from treegrpo_cli.rollout.disagreement import RewardsSoFar
from treegrpo_cli.run.resuming import put_aside
from treegrpo_cli.train.checkpoint import checkpoints, remove_old_checkpoints

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.collect import Grown
    from treegrpo_cli.run.directory import RunDirectory
    from treegrpo_cli.run.parts import StepTrainer
    from treegrpo_cli.run.progress import Reporter
    from treegrpo_cli.types import Task


class Keeper:
    """What a run keeps beside its metrics and trees; `state` is the loop's own, saved with every checkpoint."""

    def __init__(
        self, config: Config, directory: RunDirectory, trainer: StepTrainer, reporter: Reporter, tasks: Sequence[Task]
    ) -> None:
        self.config, self.directory, self.trainer, self.reporter = config, directory, trainer, reporter
        self._rows = digest_of(tasks)
        self.state: dict[str, Any] = {
            "num_tokens": 0,
            "num_prompts": 0,
            "rows": self._rows,
        }
        self._saved_step = 0

    def load_newest(self) -> int:
        """Return the step to go on from; -1 where the run was ended before its first checkpoint."""
        found = checkpoints(self.directory.path)
        for path in sorted(set(self.directory.path.glob("checkpoint-*")) - set(found)):
            self.reporter.warn(f"{path} is no whole checkpoint, and is passed over")
        if not found:
            self.reporter.warn(f"{self.directory.path} has no checkpoint: the run starts again from its first step")
            return -1
        self.state = self.trainer.load(found[-1])
        self._saved_step = self.trainer.step
        self.state.setdefault("num_prompts", self.trainer.step * self.config.train.prompts_per_step)
        if self.state.setdefault("rows", self._rows) != self._rows:
            self.state["rows"] = self._rows
            self.reporter.warn(f"the rows of data.train, {self.config.data.train}, have changed since the run began")
        self.reporter.say(f"resuming after step {self.trainer.step}")
        return self.trainer.step

    @property
    def rewards_so_far(self) -> RewardsSoFar:
        """Of all leaves of the steps so far."""
        return RewardsSoFar(*self.state.get("rewards", ()))

    def count_rollout(self, groups: Sequence[Grown]) -> None:
        """Count what a whole step has drawn and got."""
        rewards = self.rewards_so_far.with_more([reward for grown in groups for reward in grown.rewards])
        self.state["num_prompts"] += len(groups)
        self.state["rewards"] = list(astuple(rewards))

    def put_aside(self, step: int) -> None:
        """Move what an earlier run wrote behind `step` out of the way."""
        aside = put_aside(self.directory.path, step)
        if aside is not None:
            self.reporter.say(f"metrics and trees of later steps are kept in {aside}")

    def save_if_due(self, *, is_last: bool) -> None:
        """Save after the last step, and every `train.save_steps`."""
        step, train = self.trainer.step, self.config.train
        if is_last or (train.save_steps and step % train.save_steps == 0):
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this step, and remove the oldest beyond `train.max_checkpoints`."""
        self.directory.claim()
        self.trainer.save(self.directory.path, self.state)
        self._saved_step = self.trainer.step
        remove_old_checkpoints(self.directory.path, self.config.train.max_checkpoints)

    def save_at_end(self, error: BaseException) -> None:
        """Save the last whole step where that can be done, whatever ended the run, and say how to go on."""
        step = self.trainer.step
        try:
            if step > self._saved_step and self.trainer.is_whole:
                self.save()
        except Exception as failed:  # a full disk, a device that is gone: the error that ended the run goes before it
            if isinstance(error, Stopped):
                raise
            self.reporter.warn(f"step {step} could not be saved: {said(failed)}")
        if isinstance(error, Stopped):
            error.hint = self._how_to_go_on()
        elif self.directory.is_claimed or self._saved_step:
            self.reporter.warn(self._how_to_go_on())

    def _how_to_go_on(self) -> str:
        if self._saved_step:
            return f"stopped after step {self._saved_step}; continue with the same command and --resume"
        again = "the same command with --resume" if self.directory.is_claimed else "the same command"
        return f"stopped before the first step was finished; {again} starts over"


def digest_of(tasks: Sequence[Task]) -> str:
    """What differs where a row that is trained on does."""
    return hashlib.sha256("".join(row_digest(task.columns) for task in tasks).encode()).hexdigest()[:16]
