"""Config + tree file -> trees on disk: what `treegrpo rollout` does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from itertools import islice, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.data.outputs import check_new, check_output
from treegrpo_cli.errors import Stopped
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.journal import Journal
from treegrpo_cli.rollout.step_budget import StepBudget
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.rollout.waves import grow_in_waves
from treegrpo_cli.run.doubts import Doubts, Signs
from treegrpo_cli.run.failures import FailureCount, FailureLog
from treegrpo_cli.run.harvest import Harvest
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.run.preflight import prepare, train_questions
from treegrpo_cli.run.stage import open_stage
from treegrpo_cli.trees.stats import RolloutStats

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.collect import Grown
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.run.progress import Bar, Reporter


def generate(
    config: Config, output: Path, reporter: Reporter, *, resume: bool = False, parts: Parts | None = None
) -> RolloutStats:
    """Grow trees for every row of `data.train` and write them, scored, prompt by prompt, to `output`.

    Raises FileError where `output` exists and `resume` is not asked, or somebody else writes it; UserError where
    it holds trees of other settings or rows.
    """
    check_output(output)
    named, output = output, output.absolute()  # a tool or a reward may change the working directory
    with ExitStack() as stack:
        stack.enter_context(output_lock(output))
        check_free(output, resume=resume)
        asked = train_questions(config)
        prepared = prepare(config, [asked])
        stack.callback(prepared.close)
        tasks, world = prepared.tasks[asked.key], prepared.world
        harvest = Harvest(config, output, resume=resume)
        stack.callback(harvest.close)
        done, mended = harvest.recover(tasks)
        for line in mended:
            reporter.warn(line)
        stack.enter_context(harvest.open_writer())
        engine_log = output.with_name(f"{output.name}.engine.log")
        player, runner, stop = open_stage(stack, config, world, engine_log, reporter, parts=parts)
        reporter.say(f"rollouts run on {player.sampler.name}")
        bar = stack.enter_context(reporter.bar("rolling out", len(tasks), done=len(done), side_by_side=True))
        prompts = starmap(Prompt.numbered, enumerate(tasks))
        watch = Watch(config, reporter, world.environment.tools)
        try:
            stop.run(runner, _grow(player, prompts, done, harvest, watch, bar))
            watch.finish()
        except Stopped as stopped:
            stopped.hint = f"stopped; the same command with --resume continues {named}"
            raise
    return harvest.stats


async def _grow(
    player: Player, prompts: Iterator[Prompt], done: Container[str], harvest: Harvest, watch: Watch, bar: Bar
) -> None:
    async with aclosing(_groups(player, prompts, done, harvest)) as groups:
        async for grown in groups:
            watch.look(grown)
            if grown.failed:
                harvest.drop(grown.prompt.prompt_id)
            else:
                harvest.write(grown.prompt.prompt_id)
                bar.advance(note=f"{harvest.stats.num_leaves} leaves")
            watch.check_so_far()


async def _groups(
    player: Player, prompts: Iterator[Prompt], done: Container[str], harvest: Harvest
) -> AsyncGenerator[Grown]:
    """Groups that are not done, trees handed to `harvest`: as they end, or where prompts wait for each other by steps.

    A step is `train.prompts_per_step` prompts in the order of the data. One of which some are done is grown again as
    a whole, because what each prompt gets depends on the others.
    """
    if not player.config.prompts_wait:
        missing = (prompt for prompt in prompts if prompt.prompt_id not in done)
        num_trees, waiting = player.config.rollout.num_trees, harvest.waiting()
        async with aclosing(collect(player, missing, num_trees, harvest.keep, waiting)) as groups:
            async for grown in groups:
                yield grown
        return
    while step := list(islice(prompts, player.config.train.prompts_per_step)):
        if all(prompt.prompt_id in done for prompt in step):
            continue
        for grown in await grow_in_waves(player, step, StepBudget(player.config.budget)):
            if grown.prompt.prompt_id not in done:
                for tree in grown.trees:
                    harvest.keep(tree)
                yield grown


def check_free(output: Path, *, resume: bool) -> None:
    """Raise FileError where `output` cannot be written, or exists and is not to be resumed.

    What a rollout leaves that was stopped while it started, an empty file and an empty journal, is in nobody's way.
    """
    left = [path for path in (output, Journal.path_of(output)) if path.exists()]
    if resume or all(path.is_file() and not path.stat().st_size for path in left):
        check_output(output)
    else:
        check_new(output, "continue it with --resume, or choose another --output")


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
