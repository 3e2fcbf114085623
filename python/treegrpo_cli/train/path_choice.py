"""The forest of a step -> the attention path it takes: planned, checked against chains once, and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from treegrpo_cli._core import Layout, MicroBatch
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train import paths
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.counts import ModelShape, Step
from treegrpo_cli.train.head import Objective
from treegrpo_cli.train.planner import Choice, choose
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.self_check import Disagreement, check
from treegrpo_cli.types import TrainBatch

CHECK_TOKENS = 2048
"""Tokens of the forest that the self-check computes."""


class PathChooser:
    """Chooses step by step; `path` is the one that was taken last.

    `self_checks` say for each path that was taken how far it is from chains on this model; a run keeps what was found.
    `say` takes the lines that explain the choice. Raises UserError where the settings ask for a path that cannot
    train this model.
    """

    def __init__(self, config: Config, policy: Policy, say: Callable[[str], None]) -> None:
        self._config, self._policy, self._say = config, policy, say
        self._shape = ModelShape.of(policy.model)
        subject = paths.Subject(policy.network, policy.device, policy.dtype, config.loss.ratio)
        found = ((path.name, path.refusal(subject)) for path in paths.registered())
        self._refusals = {name: reason for name, reason in found if reason is not None}
        self.self_checks: dict[str, Disagreement] = {}
        self.path = paths.reference_path()
        self._said = ""
        self._check_wanted(self._refusals)

    def take(
        self, step: Step, packed: Sequence[Layout], objective_of: Callable[[TrainBatch], Objective]
    ) -> dict[str, float | str]:
        """Choose the `path` of a step whose shared layouts these are; return what the choice says of it.

        A path that was not taken before computes a small forest first, by the objective that `objective_of` gives for
        it, and chains do the same; where the two disagree, chains are what is trained on.
        """
        metrics: dict[str, float | str] = {}
        choice = self._choose(step)
        if choice.path.shares and choice.path.name not in self.self_checks:
            metrics |= self._check(packed, choice.path, objective_of)
            choice = self._choose(step)
        self._explain(choice, step)
        self.path = choice.path
        computed = float(self.path.computed_tokens(step))
        return metrics | {
            "tree/computed_tokens": computed,
            "tree/trained_tokens": computed * self._config.train.num_epochs,
            "tree/chain_tokens": float(step.chain_tokens),
            "tree/attention_path": self.path.name,
        }

    def _choose(self, step: Step) -> Choice:
        found = [check.refusal for check in self.self_checks.values() if check.refusal is not None]
        disagreeing = {path.name: found[0] for path in paths.registered() if path.shares} if found else {}
        refusals = disagreeing | self._refusals
        self._check_wanted(refusals)
        policy = self._policy
        return choose(step, self._shape, policy.device, policy.dtype, self._config.train.attention_path, refusals)

    def _check_wanted(self, refusals: dict[str, str]) -> None:
        """Raise UserError where the settings ask for a path and something speaks against it."""
        wanted = self._config.train.attention_path
        if wanted in refusals:
            raise UserError(f"train.attention_path: {wanted} cannot train this model: {refusals[wanted]}")

    def _explain(self, choice: Choice, step: Step) -> None:
        """Say which path is taken and why, when that changes."""
        if choice.path.name == self._said:
            return
        self._said = choice.path.name
        budget = self._config.train.microbatch_tokens
        alone = f"; a path of {step.longest_path:,} tokens exceeds train.microbatch_tokens = {budget:,} and goes alone"
        exceeds = choice.path.exceeds(step, budget)
        self._say(f"training on {choice.path.name}: {choice.reason}{alone if exceeds else ''}")

    def _check(
        self, packed: Sequence[Layout], path: paths.AttentionPath, objective_of: Callable[[TrainBatch], Objective]
    ) -> dict[str, float | str]:
        """Compute a small forest on this path and as chains."""
        batch = self._small_forest(packed)
        if batch is None:
            return {}
        is_local = self._config.loss.ratio == "token"
        found = check(self._policy, batch, path, objective_of(batch), is_local=is_local)
        for weight in self._policy.trained_parameters().values():
            weight.grad = None
        if batch.segments or found.refusal is not None:  # rows side by side do not show what a shared prefix does
            self.self_checks[path.name] = found
        if found.refusal is not None and self._config.train.attention_path == "auto":
            self._say(f"warning: trees are trained on as chains: {found.refusal}")
        return {} if found.difference is None else {"tree/self_check": found.difference}

    def _small_forest(self, packed: Sequence[Layout]) -> TrainBatch | None:
        """The micro-batch, if possible a shared one, with the longest path whose rows fit one forward."""
        budget = self._config.train.microbatch_tokens
        micros = [micro for layout in packed for micro in layout.micro_batches(min(budget, CHECK_TOKENS))]
        trained = [micro for micro in micros if len(micro.target_ids)]
        shared = [micro for micro in trained if len(micro.key_start)] or trained

        def padded(micro: MicroBatch) -> int:
            return (len(micro.run_start) - 1) * (int(micro.positions.max()) + 1)

        fitting = [micro for micro in shared if padded(micro) <= budget]
        chosen = max(fitting, key=padded) if fitting else min(shared, key=padded, default=None)
        return None if chosen is None else to_batch(chosen, self._policy.device)
