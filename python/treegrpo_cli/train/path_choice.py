"""The forest of a step -> the attention path it takes: planned, checked against chains, and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from treegrpo_cli._core import Layout, MicroBatch
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train import paths
from treegrpo_cli.train.checking import SelfChecks
from treegrpo_cli.train.counts import ModelShape, Step
from treegrpo_cli.train.dealing import best_hands
from treegrpo_cli.train.planner import Choice, choose
from treegrpo_cli.train.policy import Policy

ROUND_TOKENS = {"cpu": 64, "cuda": 8192}
"""Tokens whose forward and backward pass take as long as gathering and reducing all weights between ranks.

Of P weights 12 P bytes travel, and a token takes 6 P operations: at 2 GB/s beside 50 GFLOP/s on a CPU, or at 100 GB/s
beside 400 TFLOP/s on GPUs.
"""

WHOLE = 2**62
"""Tokens of a micro-batch on a path that asks for no size."""

ONE_ROW = 1
"""Tokens of a micro-batch that every row exceeds, and so goes alone."""

Metrics = dict[str, float | str]


class PathChooser:
    """Chooses step by step; `path` is the one that was taken last, `checks` what was found out about paths.

    `say` takes the lines that explain the choice. Raises UserError where the settings ask for a path that cannot
    train this model.
    """

    def __init__(self, config: Config, policy: Policy, say: Callable[[str], None]) -> None:
        self._config, self._policy, self._say = config, policy, say
        self._shape = ModelShape.of(policy.model)
        self._of_a_predictor: float = 2.0 * policy.model.get_output_embeddings().weight.numel()
        subject = paths.Subject(policy.network, policy.device, policy.dtype, config.loss.ratio)
        found = ((path.name, path.refusal(subject)) for path in paths.registered())
        self._refusals = {name: reason for name, reason in found if reason is not None}
        self.checks = SelfChecks(config, policy, say)
        self.path = paths.reference_path()
        self._said = ""
        self._check_wanted(self._refusals)

    def take(self, step: Step, packed: Sequence[Layout]) -> Metrics:
        """Choose the `path` of a step whose shared layouts these are; return what a check has found.

        Chains, and a path that shares, compute a small forest before they are first taken, and again when paths
        outgrow it; where the two disagree, chains are what is trained on.
        """
        self._step = step
        self.checks.begin(step, packed)
        self.checks.check_chains()
        difference, choice = None, self._choose()
        if choice.path.shares:
            difference = self.checks.check(choice.path)
            choice = self._choose()
        self.checks.end()
        self._take(choice)
        return {} if difference is None else {"tree/self_check": difference}

    def give_up(self, reason: str) -> None:
        """Leave the `path`, which failed in a forward, for chains. Raises UserError where the settings ask for it.

        On several ranks it is noted, and they choose together at the next step that they take.
        """
        self.checks.give_up(self.path, reason)
        if self._policy.ranks.size == 1:
            self._take(self._choose())

    def micro_batches(self, layout: Layout) -> list[MicroBatch | None]:
        """Cut a layout made for the `path` into what is computed at once; return what has targets.

        On ranks it is this rank's share, and None where it forwards only because the others do.
        """
        goes_alone = self._policy.decoder.rows_alone or self.checks.rows_alone
        max_tokens = ONE_ROW if goes_alone and not self.path.shares else self._config.train.microbatch_tokens
        path, device, ranks = self.path, self._policy.device, self._policy.ranks
        if ranks.size == 1:
            return [micro for micro in path.micro_batches(layout, max_tokens, device) if len(micro.target_ids)]
        hands = best_hands(
            layout,
            lambda layout, tokens: path.parts(layout, tokens, device),
            WHOLE if path.reuses_weights else max_tokens,
            ranks.size,
            self._work,
            None if path.reuses_weights else self._shape.token * ROUND_TOKENS.get(device.type, ROUND_TOKENS["cuda"]),
        )
        return hands[ranks.rank] or [None]

    def _work(self, micro: MicroBatch) -> float:
        """Estimate the forward of a micro-batch on the path, with the LM head, in floating point operations."""
        path_work = self.path.cost(Step.of_one(micro), self._shape, self._policy.device)
        return path_work + self._of_a_predictor * len(micro.predictors)

    def _take(self, choice: Choice) -> None:
        self._explain(choice)
        self.path = choice.path

    def metrics(self) -> Metrics:
        """Return how the last step is computed, and of how many tokens."""
        computed = float(self.path.computed_tokens(self._step))
        return {
            "tree/computed_tokens": computed,
            "tree/trained_tokens": computed * self._config.train.num_epochs,
            "tree/chain_tokens": float(self._step.chain_tokens),
            "tree/attention_path": self.path.name,
        }

    def _choose(self) -> Choice:
        found, sharing = self.checks.refusal, [path.name for path in paths.registered() if path.shares]
        refusals = ({} if found is None else dict.fromkeys(sharing, found)) | self._refusals
        self._check_wanted(refusals)
        policy, wanted = self._policy, self._config.train.attention_path
        if policy.ranks.size > 1 and wanted == "auto":
            holding = [path.name for path in paths.registered() if path.reuses_weights]
            refusals = dict.fromkeys(holding, "every rank would hold all weights") | refusals
        choice = choose(self._step, self._shape, policy.device, policy.dtype, wanted, refusals)
        return replace(choice, path=paths.named(policy.ranks.agree(choice.path.name)))

    def _check_wanted(self, refusals: dict[str, str]) -> None:
        """Raise UserError where the settings ask for a path and something speaks against it."""
        wanted = self._config.train.attention_path
        if wanted in refusals:
            raise UserError(f"train.attention_path: {wanted} cannot train this model: {refusals[wanted]}")

    def _explain(self, choice: Choice) -> None:
        """Say which path is taken and why, when that changes."""
        step = self._step
        if choice.path.name == self._said:
            return
        self._said = choice.path.name
        budget = self._config.train.microbatch_tokens
        alone = f"; a path of {step.longest_path:,} tokens exceeds train.microbatch_tokens = {budget:,} and goes alone"
        exceeds = choice.path.exceeds(step, budget)
        self._say(f"training on {choice.path.name}: {choice.reason}{alone if exceeds else ''}")
