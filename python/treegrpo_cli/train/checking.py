"""What is known of a run's model -> which self-checks a step needs, and what their findings mean for the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from treegrpo_cli._core import Layout
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train import paths
from treegrpo_cli.train.check_forest import is_outgrown, path_length, small_forest, windows_of
from treegrpo_cli.train.counts import Step
from treegrpo_cli.train.forward import class_name
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.self_check import Disagreement, Trial

SHARE = {torch.bfloat16: 3}
"""Of the tokens of a micro-batch, the share that the longest path of a check may take; else a half. Two rows of it
stand side by side, and what is computed in bfloat16 is checked in float32."""


class SelfChecks:
    """The checks of a run, by the name of the path; a run keeps what was `found`.

    Chains are checked against rows alone, every other path against the same. `say` takes what follows from it.
    """

    def __init__(self, config: Config, policy: Policy, say: Callable[[str], None]) -> None:
        self._policy, self._say = policy, say
        self._is_local, self._wanted = config.loss.ratio == "token", config.train.attention_path
        self._max_tokens = config.train.microbatch_tokens // SHARE.get(policy.dtype, 2)
        self._config: Any = policy.model.config.get_text_config()
        self._windows = windows_of(self._config)
        self.found: dict[str, Disagreement] = {}
        self._length = 0
        self._packed: Sequence[Layout] = ()
        self._trial: Trial | None = None

    def begin(self, step: Step, packed: Sequence[Layout]) -> None:
        """Take a step's shared layouts: their text is what is computed."""
        positions = getattr(self._config, "max_position_embeddings", None)
        self._length = path_length(step.longest_path, self._windows, self._max_tokens, positions)
        self._packed = packed

    def end(self) -> None:
        """Let go of the step and of what was computed of it, before the update needs the memory."""
        self._packed, self._trial = (), None

    @property
    def subject(self) -> str:
        """What a run's findings are about beside the model; where it is resumed on another, they are made again."""
        policy = self._policy
        return (
            f"{policy.device.type}, {policy.dtype}, torch {torch.__version__}, transformers {transformers.__version__}"
        )

    @property
    def rows_alone(self) -> bool:
        """Whether rows side by side change each other on this model, so that chains go one by one."""
        found = self.found.get(paths.reference_path().name)
        return found is not None and found.refusal is not None

    @property
    def refusal(self) -> str | None:
        """What was found against a path that shares, and stands against all of them; the first of several."""
        chains = paths.reference_path().name
        reasons = (found.refusal for name, found in self.found.items() if name != chains)
        return next((reason for reason in reasons if reason is not None), None)

    def check_chains(self) -> None:
        """Compare rows side by side with rows alone, where the step calls for it.

        Raises UserError where a row alone is not the same twice.
        """
        chains = paths.reference_path()
        if self.rows_alone or (trial := self._trial_of(chains)) is None:
            return
        found = trial.of(chains)
        if found.refusal is not None:
            if not trial.is_repeatable():
                name = class_name(self._policy.model)
                raise UserError(
                    f"model.path: {name} cannot be trained: it computes the same row differently every time"
                )
            self._say(f"warning: each row is computed alone: {found.refusal} on this model")
        self.found[chains.name] = found

    def check(self, path: paths.AttentionPath) -> float | None:
        """Compare a path with rows alone, where the step calls for it; return the difference that was found."""
        if (trial := self._trial_of(path)) is None:
            return None
        found = trial.of(path)
        if found.refusal is not None:
            self._refuse(path, found)
        self.found[path.name] = found
        return found.difference

    def give_up(self, path: paths.AttentionPath, reason: str) -> None:
        """Hold against a path why it failed in a step's own forward."""
        self._refuse(path, Disagreement(None, reason, self._length))

    def _refuse(self, path: paths.AttentionPath, found: Disagreement) -> None:
        self.found[path.name] = found
        if self._wanted == "auto":
            self._say(f"warning: trees are trained on as chains: {found.refusal}")

    def _trial_of(self, path: paths.AttentionPath) -> Trial | None:
        """The step's trial, where this path needs one and there is one: text to compute, on a model of numbers."""
        before = self.found.get(path.name)
        if before is not None and not is_outgrown(before.longest, self._length, self._windows):
            return None
        if self._trial is None:
            batch = small_forest(self._packed, self._length, self._policy.device)
            self._trial = None if batch is None else Trial(self._policy, batch, is_local=self._is_local)
        return self._trial if self._trial is not None and self._trial.is_finite else None
