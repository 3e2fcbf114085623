"""Config + tree file -> trees on disk: what `treegrpo rollout` does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, aclosing, closing
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.data.outputs import check_new, check_output
from treegrpo_cli.errors import Stopped
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.journal import Journal
from treegrpo_cli.rollout.player import Player, open_sampler
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.run.doubts import Doubts, Signs
from treegrpo_cli.run.failures import FailureCount, FailureLog
from treegrpo_cli.run.origin import Origin
from treegrpo_cli.run.preflight import prepare, train_questions
from treegrpo_cli.run.recover import recover
from treegrpo_cli.run.stopping import StopRequest
from treegrpo_cli.trees.scoring import score_group
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.trees.tree_file import TreeWriter

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.collect import Grown
    from treegrpo_cli.run.progress import Reporter


def generate(config: Config, output: Path, reporter: Reporter, *, resume: bool = False) -> RolloutStats:
    """Grow trees for every row of `data.train` and write them, scored, prompt by prompt, to `output`.

    Raises FileError where `output` exists and `resume` is not asked, or somebody else writes it; UserError where
    it holds trees of other settings or rows.
    """
    check_output(output)
    named, output = output, output.absolute()  # a tool or a reward may change the working directory
    stats = RolloutStats()
    with ExitStack() as stack:
        stack.enter_context(output_lock(output))
        check_free(output, resume=resume)
        limits = config.limits.resolved
        asked = train_questions(config)
        prepared = prepare(config, [asked])
        stack.callback(prepared.close)
        tasks = prepared.tasks[asked.key]
        journal = Journal(output, resume=resume, limits=limits)
        stack.callback(_close, journal, output)
        origin = Origin(config, tasks, output)
        done, mended = recover(output, journal, origin, config.rollout.num_trees, limits, stats)
        for line in mended:
            reporter.warn(line)
        writer = stack.enter_context(TreeWriter(output, append=resume))
        engine_log = output.with_name(f"{output.name}.engine.log")
        sampler = stack.enter_context(closing(open_sampler(config, engine_log, reporter.say)))
        reporter.say(f"rollouts run on {sampler.name}")
        player = Player(prepared.world, sampler, config)
        runner, stop = stack.enter_context(asyncio.Runner()), stack.enter_context(StopRequest())
        stack.callback(lambda: runner.run(player.world.close()))
        bar = stack.enter_context(reporter.bar("rolling out", len(tasks), done=len(done)))
        prompts = (prompt for prompt in starmap(Prompt.numbered, enumerate(tasks)) if prompt.prompt_id not in done)

        async def work() -> None:
            waiting = {(prompt_id, tree_id) for prompt_id, trees in journal.trees.items() for tree_id in trees}
            keep = lambda tree: journal.add(tree_record(tree))  # noqa: E731
            async with aclosing(collect(player, prompts, config.rollout.num_trees, keep, waiting)) as groups:
                async for grown in groups:
                    watch.look(grown)
                    if grown.failed:
                        journal.forget(grown.prompt.prompt_id)
                    else:
                        finish(grown.prompt.prompt_id)
                    watch.check_so_far()

        def finish(prompt_id: str) -> None:
            group = score_group(journal.group(prompt_id), config.advantage.estimator, config.advantage.options)
            writer.write_group(group)
            journal.forget(prompt_id)
            if journal.is_stale:
                writer.sync()
                journal.compact()
            stats.add_group(group)
            bar.advance(note=f"{stats.num_leaves} leaves")

        watch = Watch(config, reporter, player.world.environment.tools)
        try:
            stop.run(runner, work())
            watch.finish()
        except Stopped as stopped:
            stopped.hint = f"stopped; the same command with --resume goes on with {named}"
            raise
    return stats


def check_free(output: Path, *, resume: bool) -> None:
    """Raise FileError where `output` cannot be written, or exists and is not to be resumed.

    What a rollout leaves that was stopped while it started, an empty file and an empty journal, is in nobody's way.
    """
    left = [path for path in (output, Journal.path_of(output)) if path.exists()]
    if resume or all(path.is_file() and not path.stat().st_size for path in left):
        check_output(output)
    else:
        check_new(output, "--resume goes on with it, or give another --output")


class Watch:
    """What fails in a rollout, and what makes it worth nothing."""

    def __init__(self, config: Config, reporter: Reporter, tools: Sequence[Mapping[str, Any]]) -> None:
        self._failures, self._log, self._signs = FailureCount(config), FailureLog(reporter), Signs()
        self._doubts = Doubts(reporter.warn, tools, num_steps=1)

    def look(self, grown: Grown) -> None:
        """Take a prompt whose trees have ended."""
        self._failures.add(grown)
        self._log.name(grown.failures)
        self._signs += Signs.of(grown.trees)

    def check_so_far(self) -> None:
        """Raise FailedRunError where too much failed of what is no longer a beginning."""
        self._failures.check_so_far("the rollout")

    def finish(self) -> None:
        """Say what all trees have in common; raise FailedRunError where too much failed of the whole."""
        self._doubts.look(self._signs)
        self._failures.check("the rollout")


def _close(journal: Journal, output: Path) -> None:
    """Remove a journal where nothing waits, and an output that a run which could not start left empty."""
    journal.close(complete=not journal.trees)
    if not journal.trees and output.is_file() and output.stat().st_size == 0:
        output.unlink()
