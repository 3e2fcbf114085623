"""Arms' settings -> one policy and one engine for all that agree on them, and a repeat of an arm rolled on these."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.compare.probe_arms import reference_config, repeated
from treegrpo_cli.rollout.disagreement import RewardsSoFar
from treegrpo_cli.rollout.forest import join, score
from treegrpo_cli.rollout.player import Player, open_sampler
from treegrpo_cli.rollout.step import grow_step
from treegrpo_cli.run.failures import FailureCount, FailureLog
from treegrpo_cli.run.loop import prompts_from
from treegrpo_cli.run.preflight import Prepared, prepare, train_questions
from treegrpo_cli.run.stage import announce
from treegrpo_cli.run.tree_metrics import learned_prompts, reward_groups
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.train.arriving import check_merged
from treegrpo_cli.train.gradient import GradientTrainer, Reduce
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.threads import Threads

if TYPE_CHECKING:
    import asyncio

    from treegrpo_cli._core import Forest, Scores
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.collect import Grown
    from treegrpo_cli.rollout.tree import Prompt, Tree
    from treegrpo_cli.run.progress import Reporter
    from treegrpo_cli.run.stopping import StopRequest
    from treegrpo_cli.samplers.base import Sampler

Shared = TypeVar("Shared")

EARLIER = 2**32
"""The repeat, beyond all others, whose draws stand for a run's earlier steps."""


@dataclass(slots=True)
class PromptRow:
    """What one prompt took and said in one repeat; `learned`: it is trained on, and has a vector."""

    number: int
    tokens: int
    tool_calls: int
    nodes: int
    live_nodes: int
    alive: bool
    learned: bool


@dataclass(slots=True)
class RepeatResult:
    """One arm in one repeat; `vectors` [learned prompts, D] in the order of their rows."""

    rows: list[PromptRow]
    vectors: NDArray[np.float32]
    rollout_s: float = 0.0
    update_s: float = 0.0


@dataclass(slots=True)
class Seat:
    """An arm that can be rolled: its settings, and what it plays with."""

    config: Config
    prepared: Prepared
    trainer: GradientTrainer
    threads: Threads
    sampler: Sampler


class Bench:
    """All arms, open at once; `stack` closes them. Arms of equal model, engine or world share these."""

    def __init__(
        self,
        stack: ExitStack,
        configs: Mapping[str, Config],
        engine_log: Path,
        reporter: Reporter,
        runner: asyncio.Runner,
        stop: StopRequest,
    ) -> None:
        self._runner, self._stop, self._reporter = runner, stop, reporter
        self._failure_log = FailureLog(reporter)
        self._earlier: dict[str, RewardsSoFar] = {}
        worlds = _Once(lambda config: self._prepare(stack, config))
        prepared = {name: worlds.of(_world_key(config), config) for name, config in configs.items()}
        policies = _Once(Policy)
        for config in configs.values():
            if config.loss.kl_coef > 0:  # first those that bring the frozen model: they serve the others too
                policies.of(_policy_key(config), config)
        trainers = {}
        for name, config in configs.items():
            policy = policies.of(_policy_key(config), config)
            trainers[name] = GradientTrainer(config, reporter.say, prepared[name].world.tokenizer, policy)
        samplers = _Once(lambda config: self._open_sampler(stack, config, policies, engine_log))
        self.seats = {
            name: Seat(
                config,
                prepared[name],
                trainers[name],
                Threads(config.train.num_threads, trainers[name].policy.device, reporter.say),
                samplers.of(_sampler_key(config), config),
            )
            for name, config in configs.items()
        }

    @property
    def num_parameters(self) -> int:
        """Entries of a gradient: the most of any arm."""
        return max(seat.trainer.num_parameters for seat in self.seats.values())

    def roll(self, name: str, repeat: int, num_prompts: int, reduce: Reduce) -> RepeatResult:
        """Play one repeat of an arm over the first prompts of its data, in steps of as many as it trains on."""
        seat = self.seats[name]
        tasks, config = seat.prepared.tasks["data.train"], seat.config
        asked = islice(prompts_from(tasks, config, 0), num_prompts)
        fresh = prompts_from(tasks, config, num_prompts)
        earlier = self._rewards_so_far(seat, num_prompts)
        parts = []
        size = config.train.prompts_per_step
        for start in range(0, num_prompts, size):
            count = min(size, num_prompts - start)
            prompts = chain(islice(asked, count), fresh)
            parts.append(self._step(seat, repeated(config, repeat, count), prompts, earlier, reduce))
        vectors = np.concatenate([part.vectors for part in parts])
        rows = [row for part in parts for row in part.rows]
        return RepeatResult(rows, vectors, sum(part.rollout_s for part in parts), sum(part.update_s for part in parts))

    def _step(
        self, seat: Seat, config: Config, prompts: Iterator[Prompt], earlier: RewardsSoFar, reduce: Reduce
    ) -> RepeatResult:
        """Grow, score and compute one step, as the loop does, up to its update."""
        self._send_weights(seat)
        start = time.monotonic()
        groups = self._grow(seat, config, prompts, earlier)
        trees = [tree for grown in groups for tree in grown.trees]
        forest = join(trees)
        scores = score(forest, trees, config.advantage)
        learned = learned_prompts(forest, config.advantage.dead_prompts)
        grown_at = time.monotonic()
        seat.sampler.sleep()
        update_start = time.monotonic()
        with seat.threads.taken():
            by_prompt = {}
            for number, vector in seat.trainer.gradients(forest, scores, learned, reduce):
                by_prompt[number] = vector.numpy()
                self._stop.check()
        rows = _rows(forest, scores, trees, learned)
        length = len(next(iter(by_prompt.values()))) if by_prompt else 0
        vectors = [by_prompt[row.number] for row in rows if row.learned]
        return RepeatResult(
            rows,
            np.stack(vectors) if vectors else np.zeros((0, length), dtype=np.float32),
            grown_at - start,
            time.monotonic() - update_start,
        )

    def _grow(self, seat: Seat, config: Config, prompts: Iterator[Prompt], earlier: RewardsSoFar) -> list[Grown]:
        player = Player(seat.prepared.world, seat.sampler, config)
        player.rewards_so_far = earlier
        failures = FailureCount(config)

        def look(grown: Grown) -> None:
            failures.add(grown)
            self._failure_log.name(grown.failures)

        groups = self._stop.run(self._runner, grow_step(player, prompts, look))
        failures.check("a step")
        return groups

    def _rewards_so_far(self, seat: Seat, num_prompts: int) -> RewardsSoFar:
        """What a run would know of its earlier steps: the rewards of a chain each of other prompts.

        No repeat's own: they would not be independent. Pure in keys, so that it is the same when a probe goes on.
        """
        key = _world_key(seat.config)
        if key not in self._earlier:
            self._send_weights(seat)
            config = repeated(reference_config(seat.config, 1), EARLIER, num_prompts)
            prompts = prompts_from(seat.prepared.tasks["data.train"], seat.config, num_prompts)
            groups = self._grow(seat, config, prompts, RewardsSoFar())
            self._earlier[key] = RewardsSoFar().with_more([reward for grown in groups for reward in grown.rewards])
        return self._earlier[key]

    def _send_weights(self, seat: Seat) -> None:
        """Wake the engine with the policy's weights, as in training; what it had cached is forgotten for each arm."""
        adapter = seat.trainer.policy.adapter()
        if adapter is not None and seat.sampler.takes_adapter:
            seat.sampler.update_adapter(adapter, 0)
        else:
            seat.sampler.update_weights(seat.trainer.state_dict_for_sampler(), 0)

    def _prepare(self, stack: ExitStack, config: Config) -> Prepared:
        prepared = prepare(config, [train_questions(config)], trains=True)
        stack.callback(prepared.close)
        stack.callback(lambda: self._runner.run(prepared.world.close()))
        announce(prepared.world, self._reporter)
        return prepared

    def _open_sampler(self, stack: ExitStack, config: Config, policies: _Once[Policy], log: Path) -> Sampler:
        policy = policies.of(_policy_key(config), config)
        sampler = stack.enter_context(closing(open_sampler(config, log, self._reporter.say, Trained(policy.adapter()))))
        self._reporter.say(f"rollouts run on {sampler.name}")
        if not sampler.takes_adapter:
            check_merged(policy, config)
        return sampler


class _Once(Generic[Shared]):
    """Makes one thing for all settings that are equal in what it reads of them."""

    def __init__(self, make: Callable[[Config], Shared]) -> None:
        self._make, self._made = make, dict[Hashable, Shared]()

    def of(self, key: Hashable, config: Config) -> Shared:
        """The thing, made where it is not there yet."""
        if key not in self._made:
            self._made[key] = self._make(config)
        return self._made[key]


def _policy_key(config: Config) -> str:
    return repr((config.model, config.rollout.temperature, config.rollout.context_tokens))


def _sampler_key(config: Config) -> str:
    return repr((config.model, config.sampler, config.rollout.context_tokens))


def _world_key(config: Config) -> str:
    return repr((config.model, config.sampler, config.environment, config.reward, config.data, config.limits))


def _rows(forest: Forest, scores: Scores, trees: list[Tree], learned: NDArray[np.uint32]) -> list[PromptRow]:
    columns, groups = forest.columns(), reward_groups(forest)
    of_node = columns["prompt"][columns["tree"]]
    turns = (scores.depth > 0) & (scores.num_leaves > 0)
    live = turns & (np.abs(np.nan_to_num(scores.advantage)) > 0)
    calls: dict[int, int] = {}
    for tree in trees:
        calls[tree.prompt.number] = calls.get(tree.prompt.number, 0) + tree.num_tool_calls
    rows = []
    for place in groups.order.tolist():
        number = int(groups.keys[place])
        own = of_node == number
        is_learned = bool(np.isin(number, learned))
        rows.append(
            PromptRow(
                number,
                tokens=int(forest.gen_tokens()[own].sum()),
                tool_calls=calls[number],
                nodes=int((own & turns).sum()),
                live_nodes=int((own & live).sum()) if is_learned else 0,
                alive=not groups.is_dead[place],
                learned=is_learned,
            )
        )
    return rows
