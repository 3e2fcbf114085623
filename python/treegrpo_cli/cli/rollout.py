"""Settings -> what `treegrpo rollout` does, and what it cost and yielded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.cli.libraries import prepare_libraries
from treegrpo_cli.cli.parts import parts_of
from treegrpo_cli.config import Config
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.trees.stats import RolloutStats

if TYPE_CHECKING:
    from treegrpo_cli.run.preflight import Questions


def run_rollout(config: Config, output: Path, *, resume: bool, quiet: bool) -> None:
    """Roll out, and report what it cost and yielded."""
    prepare_libraries()
    from treegrpo_cli.run.generate import generate

    reporter = Reporter(quiet=quiet)
    with parts_of(config) as parts:
        stats = generate(config, output, reporter, resume=resume, parts=parts)
    for line in _report(stats, output):
        reporter.result(line)


def run_greedy(config: Config, *, asks_train_data: bool, quiet: bool) -> None:
    """Play one greedy chain a question, and print the mean reward with its interval."""
    prepare_libraries()
    from treegrpo_cli.run.evaluate import evaluate_policy

    reporter = Reporter(quiet=quiet)
    with parts_of(config) as parts:
        evaluation = evaluate_policy(config, _greedy_questions(config, asks_train_data), reporter, parts=parts)
    reporter.result(f"{' + '.join(config.reward.functions)}: {evaluation.reward()}")


def check_rollout(config: Config, output: Path | None, *, resume: bool, asks_train_data: bool) -> None:
    """Find what is wrong before an engine starts; without `output` it is to play greedily. Raises Problems."""
    prepare_libraries()
    from treegrpo_cli.run.generate import check_free
    from treegrpo_cli.run.preflight import check, train_questions

    if output is None:
        check(config, [_greedy_questions(config, asks_train_data)])
    else:
        check(config, [train_questions(config)], checks=[partial(check_free, output, resume=resume)])


def _greedy_questions(config: Config, asks_train_data: bool) -> Questions:
    from treegrpo_cli.run.preflight import eval_questions, train_questions

    held_out = config.data.eval and not asks_train_data
    return eval_questions(config, config.reward) if held_out else train_questions(config)


def _report(stats: RolloutStats, output: Path) -> list[str]:
    failed = f", {stats.num_errors} failed" if stats.num_errors else ""
    calls = f" ({stats.num_failed_tool_calls} raised)" if stats.num_failed_tool_calls else ""
    mean = "" if stats.mean_reward is None else f", mean reward {stats.mean_reward:.3f}"
    return [
        f"trees              {stats.num_trees} in {output}",
        f"leaves             {stats.num_leaves} ({stats.num_distinct_leaves} distinct{failed}){mean}",
        f"turns              {stats.num_turns}",
        f"tool calls         {stats.num_tool_calls}{calls}",
        f"generated tokens   {stats.generated_tokens} (chains for as many leaves: {stats.chain_tokens})",
        f"sharing ratio      {stats.sharing_ratio:.3f}",
    ]
