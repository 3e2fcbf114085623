"""Policy + questions -> Evaluation: chains, greedy or sampled, judged and counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, aclosing
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.config import Config, SelectionConfig
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.data.outputs import check_new
from treegrpo_cli.rollout.collect import Grown, collect
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.run.evaluation import Evaluation
from treegrpo_cli.run.failures import FailureLog
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.run.preflight import Questions, prepare
from treegrpo_cli.run.stage import open_stage
from treegrpo_cli.trees.tree_file import TreeWriter
from treegrpo_cli.types import Task

if TYPE_CHECKING:
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.run.progress import Bar, Reporter


def chain_config(config: Config, num_samples: int = 1) -> Config:
    """The same settings for `num_samples` chains a question: M = n, L = 0; no turn is cut, no reward flipped."""
    chains = {"num_trees": num_samples, "num_rounds": 0, "num_kept_leaves": 0}
    rollout = config.rollout.model_copy(update=chains)
    reward = config.reward.model_copy(update={"flip": 0.0})
    return config.model_copy(update={"rollout": rollout, "selection": SelectionConfig(), "reward": reward})


def evaluation_config(config: Config) -> Config:
    """`chain_config` of an evaluation while training."""
    judged = config.model_copy(update={"reward": config.reward.evaluated})
    return chain_config(judged, config.train.eval_samples or 1)


def ignore(grown: Grown) -> None:
    """Do nothing with a question's chains: the default of `evaluate`."""


def check_new_output(output: Path | None) -> None:
    """Raise FileError where rollouts are asked for under a name that is taken, or is none."""
    if output is not None:
        check_new(output, "give another --output")


async def evaluate(
    player: Player, tasks: Sequence[Task], bar: Bar, on_grown: Callable[[Grown], None] = ignore
) -> Evaluation:
    """Play the `rollout.num_trees` chains of each task; what fails is counted and left out."""
    num_samples = player.config.rollout.num_trees
    evaluation = Evaluation(player.rewards.names, num_samples)
    prompts = starmap(Prompt.numbered, enumerate(tasks))
    total, count = 0.0, 0
    async with aclosing(collect(player, prompts, num_samples)) as groups:
        async for grown in groups:
            rewards = evaluation.add(grown)
            total, count = total + sum(rewards), count + len(rewards)
            on_grown(grown)
            bar.advance(note=f"mean {total / max(count, 1):.3f}")
    return evaluation


def evaluate_policy(
    config: Config,
    questions: Questions,
    reporter: Reporter,
    *,
    num_samples: int = 1,
    greedy: bool = True,
    output: Path | None = None,
    parts: Parts | None = None,
) -> Evaluation:
    """Start an engine with `model.path`, ask it the questions, and write its rollouts to `output`, a tree file.

    Raises Problems for what is found before the engine starts.
    """
    output = output and output.absolute()
    prepared = prepare(config, [questions], checks=[partial(check_new_output, output)])
    tasks = prepared.tasks[questions.key]
    with ExitStack() as stack:
        stack.callback(prepared.close)
        if output is not None:
            stack.enter_context(output_lock(output))
        chains, engine_log = chain_config(config, num_samples), Path(os.devnull)
        player, runner, stop = open_stage(
            stack, chains, prepared.world, engine_log, reporter, greedy=greedy, parts=parts
        )
        reporter.say(f"{config.model.path} answers {questions.source} on {player.sampler.name}")
        writer = None if output is None else stack.enter_context(TreeWriter(output))
        failures = FailureLog(reporter)

        def keep(grown: Grown) -> None:
            failures.name(grown.failures)
            if writer is not None and grown.trees:
                writer.write_group([tree_record(tree) for tree in grown.trees])

        bar = stack.enter_context(reporter.bar("playing", len(tasks), side_by_side=True))
        return stop.run(runner, evaluate(player, tasks, bar, keep))
