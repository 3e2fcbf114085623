"""Config -> the parts of a training run, opened, resumed and closed together; the plumbing under `loop.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Self

from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.run.clock import Clock, peak_memory, rollout_metrics
from treegrpo_cli.run.course import Course
from treegrpo_cli.run.directory import RunDirectory
from treegrpo_cli.run.doubts import Doubts, Signs
from treegrpo_cli.run.evaluate import evaluate, evaluation_config
from treegrpo_cli.run.failures import FailureLog
from treegrpo_cli.run.keeping import Keeper
from treegrpo_cli.run.metrics import MetricsLog
from treegrpo_cli.run.overlap import Overlap
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.run.preflight import prepare, training_questions
from treegrpo_cli.run.resuming import is_evaluated
from treegrpo_cli.run.samples import draw_samples, draw_table
from treegrpo_cli.run.spending import read_spending
from treegrpo_cli.run.spent_metrics import chain_tool_calls, discard_metrics, spent_metrics
from treegrpo_cli.run.stage import announce
from treegrpo_cli.run.staleness import AGE_MAX, staleness_metrics
from treegrpo_cli.run.stopping import StopRequest
from treegrpo_cli.run.tree_metrics import reward_metrics
from treegrpo_cli.train.step_metrics import MISMATCH_MAX, MISMATCH_MEAN
from treegrpo_cli.trees.scoring import each_with_scores
from treegrpo_cli.trees.sums import resolved_terms
from treegrpo_cli.trees.tree_file import TreeRecord, write_groups

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from treegrpo_cli._core import Forest, Scores
    from treegrpo_cli.config import Config
    from treegrpo_cli.run.progress import Reporter


class Session:
    """A run while it is open: data, trainer, sampler, log and signals; `step` counts the whole steps behind it."""

    def __init__(
        self,
        config: Config,
        reporter: Reporter,
        *,
        resume: bool = False,
        named: Collection[str] = (),
        parts: Parts | None = None,
    ) -> None:
        self.config, self.reporter, self._parts = config, reporter, parts or Parts()
        self.directory = RunDirectory(config, resume=resume, named=named)
        with ExitStack() as stack:
            stack.enter_context(self.directory)
            for change in self.directory.changes:
                reporter.warn(change)
            world = self._prepare(stack)
            trainer = self._parts.open_trainer(config, reporter.say, world.tokenizer)
            self.trainer = stack.enter_context(closing(trainer))
            self.keeper = Keeper(config, self.directory, self.trainer, reporter, self.tasks)
            self.clock, self._failure_log = Clock(), FailureLog(reporter)
            resumed_step = self.keeper.load_newest() if resume else None
            self._open(stack, world, resumed_step)
            self._closing = stack.pop_all()

    def _prepare(self, stack: ExitStack) -> World:
        config = self.config
        prepared = prepare(config, training_questions(config), config.report_to, trains=True)
        stack.callback(prepared.close)
        self.tasks, self.eval_tasks = prepared.tasks["data.train"], prepared.tasks.get("data.eval", [])
        return prepared.world

    def _open(self, stack: ExitStack, world: World, resumed_step: int | None) -> None:
        config = self.config
        announce(world, self.reporter)
        sampler = self._parts.open_sampler(config, self.directory.engine_log, self.reporter.say, self.trainer.trained)
        self.sampler = stack.enter_context(closing(sampler))
        self.reporter.say(f"rollouts run on {self.sampler.name}")
        self.trainer.check(self.sampler)
        with self.clock.of("weights"):
            self.trainer.send_weights(self.sampler)
        self.player = Player(world, self.sampler, config)
        self._doubts = Doubts(self.reporter.warn, world.environment.tools)
        greedy = not config.train.eval_samples
        self.evaluator = Player(world, self.sampler, evaluation_config(config), greedy=greedy)
        self.keeper.put_aside(-1 if resumed_step is None else resumed_step)
        log = MetricsLog(
            self.directory.path, config.report_to, without_passwords(config.model_dump(mode="json")), resumed_step
        )
        self.log = stack.enter_context(closing(log))
        self.spending = read_spending(log.path)
        self.runner = stack.enter_context(asyncio.Runner())
        stack.callback(lambda: self.runner.run(world.close()))
        self.stop = stack.enter_context(StopRequest())
        self.course = self._open_course()
        stack.callback(self.course.close)
        self._bar = stack.enter_context(self.reporter.bar("training", config.train.num_steps, done=self.step))

    def _open_course(self) -> Course:
        shared = self.player, self.runner, self.stop, self._failure_log.name, lambda: self.keeper.rewards_so_far
        return Overlap(*shared, self.step) if self.config.scale.max_staleness else Course(*shared)

    @property
    def step(self) -> int:
        """Whole steps trained."""
        return self.trainer.step

    @property
    def is_done(self) -> bool:
        """Whether the last step is behind it: by `train.num_steps`, or because a budget of the run is spent."""
        return self.step >= self.config.train.num_steps or self.spending.total.reaches(self.config.budget)

    @property
    def num_prompts(self) -> int:
        """Prompts that these steps have drawn."""
        return int(self.keeper.state["num_prompts"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.keeper.save_at_end(error)
        finally:
            self._closing.__exit__(kind, error, trace)

    def grow(self, prompts: Iterator[Prompt]) -> list[Tree]:
        """Grow the trees of a step, in the order of `prompts`, whichever was finished first.

        It draws as many prompts as the step takes; one that failed has no trees. Raises FailedRunError where more than
        `train.max_failed_fraction` failed.
        """
        with self.clock.of("rollout"):
            growth = self.course.grow(prompts)
        growth.failures.check(f"step {self.step + 1}")
        self._growth, self._grown = growth, growth.groups
        in_order = [tree for grown in self._grown for tree in grown.trees]
        self._doubts.look(Signs.of(in_order))
        return in_order

    def update(self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32]) -> dict[str, float | str]:
        """Train on these prompts of a step's forest, on the memory that the engine gives back meanwhile.

        What is behind it is a whole step, and can be saved; the engine sleeps until `send_weights`, or trees of later
        steps grow.
        """
        version = self.step
        with self.clock.of("weights"):
            self.course.sleep()
        with self.clock.of("update"):
            metrics = self.course.beside(partial(self.trainer.update, forest, scores, prompts))
        self.keeper.state["num_tokens"] += forest.num_tokens
        self.keeper.count_rollout(self._grown)
        if self.config.scale.max_staleness:
            metrics |= staleness_metrics(forest, scores, prompts, version)
        if MISMATCH_MEAN in metrics and not metrics.get(AGE_MAX):
            mean, most = float(metrics[MISMATCH_MEAN]), float(metrics[MISMATCH_MAX])
            self._doubts.compare(mean, most, self.trainer.dtype)
        return metrics

    def send_weights(self) -> None:
        """Wake the engine and hand it the policy's weights, or the adapter where it takes that unmerged.

        What it samples from now on carries this step as its version.
        """
        with self.clock.of("weights"), self.course.sending():
            self.trainer.send_weights(self.sampler)

    def finish_step(
        self, trees: Sequence[Tree], scores: Scores, prompts: NDArray[np.uint32], metrics: dict[str, float | str]
    ) -> None:
        """Write metrics and trees of the step just trained on `prompts`; save and evaluate where that is due."""
        self.directory.claim()
        discarded = [grown for grown in self._grown if grown.trees and grown.prompt.number not in prompts]
        metrics |= self._run_metrics(trees, metrics) | discard_metrics(discarded, self._num_refills)
        self.log.log(self.step, metrics)
        self.spending.add(metrics)
        self._log_completions(trees, scores)
        if self.config.train.save_trees:
            ids = {grown.prompt.prompt_id for grown in discarded}
            self.course.beside(partial(self._write_trees, trees, scores, ids))
        self._bar.advance(note=f"reward {metrics['reward']:.3f}")
        self.course.beside(partial(self.keeper.save_if_due, is_last=self.is_done))
        if not self.is_done:
            self.course.check()
        del self._growth, self._grown  # as large as the step, and the next one is about to grow
        self.evaluate_if_due()
        self.stop.check()

    @property
    def _num_refills(self) -> int:
        return len(self._grown) - self.config.train.prompts_per_step

    def _run_metrics(self, trees: Sequence[Tree], metrics: dict[str, float | str]) -> dict[str, float | str]:
        """What stands beside the metrics of trainer and trees: rewards, failures, counts, seconds, memory."""
        times, hits = self.clock.metrics(), self.sampler.prefix_cache_hit_ratio()
        times["time/packing"] = self.trainer.packing_s
        times["time/update"] -= self.trainer.packing_s
        timings, growing_s = self.course.take_timings(times["time/rollout"])
        trained = float(metrics["tree/trained_tokens"])
        return (
            reward_metrics([worth for tree in trees for worth in tree.rewards.values()])
            | self._growth.failures.metrics()
            | spent_metrics(self._grown, self.config.rollout, self._growth.seconds)
            | {
                "num_tokens": self.keeper.state["num_tokens"],
                "tree/num_tool_calls": float(sum(tree.num_tool_calls for tree in trees)),
                "tree/chain_tool_calls": float(chain_tool_calls(trees)),
                "tree/num_failed_tool_calls": float(sum(tree.num_failed_tool_calls for tree in trees)),
                "tokens_per_second/trained": trained / max(times["time/update"], 1e-9),
            }
            | ({} if hits is None else {"tree/prefix_cache_hit_ratio": hits})
            | rollout_metrics(timings, growing_s)
            | times
            | peak_memory()
        )

    def _write_trees(self, trees: Sequence[Tree], scores: Scores, discarded: Collection[str]) -> None:
        """Write all of them: `meta.discarded` is true in those of the prompts that were not trained on."""
        terms = resolved_terms(self.config.advantage.score_terms)
        records = each_with_scores(map(tree_record, trees), scores, terms, in_place=True)
        marked = (_marked(record, discarded) for record in records)
        groups = (group for _, group in groupby(marked, key=lambda record: record.prompt_id))
        write_groups(self.directory.trees(self.step), groups)

    def _log_completions(self, trees: Sequence[Tree], scores: Scores) -> None:
        key = [self.config.seed, self.step]
        samples = draw_samples(trees, self.config.train.log_completions, key, scores.advantage)
        if samples:
            self.reporter.show(draw_table(samples, self.step))
            self.log.log_samples(self.step, samples)

    def evaluate_if_due(self) -> None:
        """Evaluate before the first step, after the last, and as `train.eval_tokens` or `train.eval_steps` have it.

        It is logged as a line of its own.
        """
        train = self.config.train
        if not self.eval_tasks:
            return
        passes = self.spending.passes(train.eval_tokens) if train.eval_tokens else self.step % train.eval_steps == 0
        due = self.step == 0 or passes or self.is_done
        if not due or is_evaluated(self.directory.path, self.step):
            return
        number = len(self.eval_tasks)
        with (
            self.clock.of("evaluation"),
            self.course.evaluating(),
            self.reporter.bar("evaluating", number, side_by_side=True) as bar,
        ):
            evaluation = self.course.run(evaluate(self.evaluator, self.eval_tasks, bar))
        self.directory.claim()
        self._failure_log.name(evaluation.failures)
        means = evaluation.means()
        metrics = {
            "eval/num_questions": len(self.eval_tasks),
            "time/evaluation": self.clock.metrics()["time/evaluation"],
        }
        for name, mean in means.items():
            metrics |= {f"eval/{name}": mean.mean, f"eval/{name}_low": mean.low, f"eval/{name}_high": mean.high}
        self.log.log(self.step, metrics)
        for name, mean in means.items():
            self.reporter.result(f"step {self.step}: {name} on held-out questions {mean}")


def _marked(record: TreeRecord, discarded: Collection[str]) -> TreeRecord:
    if record.prompt_id not in discarded:
        return record
    return record.replaced(meta={**(record.meta or {}), "discarded": True})
