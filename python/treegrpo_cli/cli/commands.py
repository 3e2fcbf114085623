"""Parsed command line -> settings, one function call, and what it reports."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import tomli_w

from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.resuming import differences
from treegrpo_cli.trees.stats import RolloutStats

if TYPE_CHECKING:
    from treegrpo_cli.run.preflight import Questions


class Flags(TypedDict, total=False):
    """Flags that stand for settings."""

    model: str | None
    data: str | None
    reward: Sequence[str] | None
    output_dir: str | None
    report_to: Sequence[str] | None
    log_completions: bool


def read_settings(settings: Sequence[str], **flags: Unpack[Flags]) -> Config:
    """Read `[CONFIG] [KEY=VALUE]...` and the flags that stand for keys; a flag wins over the rest."""
    if settings and os.path.isdir(settings[0]):
        raise UserError(f"{settings[0]}: a folder; --resume goes on with the run in it")
    return load_config(*_file_and_overrides(settings, **flags))


def read_resumed_settings(settings: Sequence[str], **flags: Unpack[Flags]) -> tuple[Config, set[str]]:
    """Read `[CONFIG] [RUN] [KEY=VALUE]...` of a run that is resumed, and the settings that were changed by name.

    Without CONFIG they are the run's own, from the folder RUN; without RUN the folder is that of the settings.
    """
    folders = [text for text in settings if os.path.isdir(text)]
    file, overrides = _file_and_overrides([text for text in settings if text not in folders[:1]], **flags)
    if folders:
        if any(override.startswith("output_dir=") for override in overrides):
            raise UserError(f"output_dir: the run to resume is in {folders[0]}; give one of the two")
        overrides.append(f"output_dir={quoted(folders[0])}")
    own = Path(folders[0] if folders else load_config(file, overrides).output_dir) / "config.toml"
    if not own.is_file():
        raise FileError(own.parent, "holds no run to resume")
    named = {key for key, *_ in differences(load_config(own), load_config(own, overrides))}
    return load_config(file or own, overrides), named


def names_train_data(settings: Sequence[str]) -> bool:
    """Whether the command line names `data.train`, and no other data to evaluate on."""
    keys = {text.partition("=")[0] for text in settings}
    return "data.train" in keys and "data.eval" not in keys


def _file_and_overrides(
    settings: Sequence[str],
    *,
    model: str | None = None,
    data: str | None = None,
    reward: Sequence[str] | None = None,
    output_dir: str | None = None,
    report_to: Sequence[str] | None = None,
    log_completions: bool = False,
) -> tuple[Path | None, list[str]]:
    named = settings[0] if settings else "="
    file = Path(named) if "=" not in named or os.path.isfile(named) else None
    overrides = list(settings[1:] if file else settings)
    for key, value in (("model.path", model), ("data.train", data), ("output_dir", output_dir)):
        if value is not None:
            overrides.append(f"{key}={quoted(value)}")
    for key, values in (("reward.functions", reward), ("report_to", report_to)):
        if values:
            overrides.append(f"{key}=[{', '.join(map(quoted, values))}]")
    if log_completions:
        overrides.append("train.log_completions=true")
    return file, overrides


def run_train(config: Config, *, resume: bool, named: Collection[str] = (), quiet: bool) -> None:
    """Train, and say where the result is."""
    prepare_libraries()
    from treegrpo_cli.run.loop import train

    reporter = Reporter(quiet=quiet)
    train(config, reporter, resume=resume, named=named)
    reporter.say(f"checkpoints, metrics.jsonl and trees are in {config.output_dir}")


def run_rollout(config: Config, output: Path, *, resume: bool, quiet: bool) -> None:
    """Roll out, and report what it cost and yielded."""
    prepare_libraries()
    from treegrpo_cli.run.generate import generate

    reporter = Reporter(quiet=quiet)
    stats = generate(config, output, reporter, resume=resume)
    for line in _report(stats, output):
        reporter.result(line)


def run_greedy(config: Config, *, asks_train_data: bool, quiet: bool) -> None:
    """Play one greedy chain a question, and print the mean reward with its interval."""
    prepare_libraries()
    from treegrpo_cli.run.evaluate import evaluate_policy

    reporter = Reporter(quiet=quiet)
    evaluation = evaluate_policy(config, _greedy_questions(config, asks_train_data), reporter)
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


def check_train(config: Config, *, resume: bool) -> None:
    """Find what is wrong before an engine starts, the run's folder included. Raises Problems."""
    prepare_libraries()
    from treegrpo_cli.run.directory import RunDirectory
    from treegrpo_cli.run.preflight import check, training_questions

    directory = RunDirectory(config, resume=resume)
    check(config, training_questions(config), config.report_to, [directory.check])


def _greedy_questions(config: Config, asks_train_data: bool) -> Questions:
    from treegrpo_cli.run.preflight import eval_questions, train_questions

    held_out = config.data.eval and not asks_train_data
    return eval_questions(config, config.reward) if held_out else train_questions(config)


def _report(stats: RolloutStats, output: Path) -> list[str]:
    failed = f", {stats.num_errors} failed" if stats.num_errors else ""
    calls = f" ({stats.num_failed_tool_calls} raised)" if stats.num_failed_tool_calls else ""
    mean = f", mean reward {sum(stats.rewards) / len(stats.rewards):.3f}" if stats.rewards else ""
    return [
        f"trees              {stats.num_trees} in {output}",
        f"leaves             {stats.num_leaves} ({stats.num_distinct_leaves} distinct{failed}){mean}",
        f"turns              {stats.num_turns}",
        f"tool calls         {stats.num_tool_calls}{calls}",
        f"generated tokens   {stats.generated_tokens} (chains for as many leaves: {stats.chain_tokens})",
        f"sharing ratio      {stats.sharing_ratio:.3f}",
    ]


def quoted(text: str) -> str:
    """The text as a TOML string."""
    return tomli_w.dumps({"text": text}).removeprefix("text = ").rstrip("\n")


def prepare_libraries() -> None:
    """Keep the libraries' own bars and notes off the progress, and let warnings say whose they are.

    Raises UserError where a library is not installed.
    """
    if not all(find_spec(package) for package in ("torch", "transformers")):
        raise UserError("this command needs torch and transformers: pip install 'treegrpo[train]'")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(logging.Formatter("treegrpo: warning: %(message)s"))
