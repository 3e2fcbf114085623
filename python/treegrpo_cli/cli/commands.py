"""Parsed command line -> settings, one function call, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import tomli_w

from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.trees.stats import RolloutStats


def read_settings(
    settings: Sequence[str],
    *,
    model: str | None = None,
    data: str | None = None,
    reward: Sequence[str] | None = None,
    output_dir: str | None = None,
    report_to: Sequence[str] | None = None,
) -> Config:
    """Read `[CONFIG] [KEY=VALUE]...` and the flags that stand for keys; a flag wins over the rest."""
    file = Path(settings[0]) if settings and "=" not in settings[0] else None
    overrides = list(settings[1:] if file else settings)
    for key, value in (("model.path", model), ("data.train", data), ("output_dir", output_dir)):
        if value is not None:
            overrides.append(f"{key}={_quoted(value)}")
    for key, values in (("reward.functions", reward), ("report_to", report_to)):
        if values:
            overrides.append(f"{key}=[{', '.join(map(_quoted, values))}]")
    return load_config(file, overrides)


def run_train(config: Config, *, resume: bool, quiet: bool) -> None:
    """Train, and say where the result is."""
    _require(config)
    _hush_libraries()
    from treegrpo_cli.run.loop import train

    reporter = Reporter(quiet=quiet)
    train(config, reporter, resume=resume)
    reporter.say(f"checkpoints, metrics.jsonl and trees are in {config.output_dir}")


def run_rollout(config: Config, output: Path, *, resume: bool, quiet: bool) -> None:
    """Roll out, and report what it cost and yielded."""
    _require(config)
    _hush_libraries()
    from treegrpo_cli.run.generate import generate

    reporter = Reporter(quiet=quiet)
    stats = generate(config, output, reporter, resume=resume)
    for line in _report(stats, output):
        reporter.result(line)


def run_greedy(config: Config, *, quiet: bool) -> None:
    """Play one greedy chain a question, and print the mean reward with its interval."""
    _require(config)
    _hush_libraries()
    from treegrpo_cli.run.generate import play_greedily

    reporter = Reporter(quiet=quiet)
    mean = play_greedily(config, reporter)
    reporter.result(f"{' + '.join(config.reward.functions)}: {mean}")


def _report(stats: RolloutStats, output: Path) -> list[str]:
    failed = f", {stats.num_errors} failed" if stats.num_errors else ""
    mean = f", mean reward {sum(stats.rewards) / len(stats.rewards):.3f}" if stats.rewards else ""
    return [
        f"trees              {stats.num_trees} in {output}",
        f"leaves             {stats.num_leaves} ({stats.num_distinct_leaves} distinct{failed}){mean}",
        f"turns              {stats.num_turns}",
        f"tool calls         {stats.num_tool_calls}",
        f"generated tokens   {stats.generated_tokens} (chains for as many leaves: {stats.chain_tokens})",
        f"sharing ratio      {stats.sharing_ratio:.3f}",
    ]


def _require(config: Config) -> None:
    if not all(find_spec(package) for package in ("torch", "transformers")):
        raise UserError("this command needs torch and transformers: pip install 'treegrpo[train]'")
    for key, value in (("model.path", config.model.path), ("data.train", config.data.train)):
        if not value:
            raise UserError(f"{key}: not set; give it in the config file, or as {key}=...")


def _quoted(text: str) -> str:
    """The text as a TOML string."""
    return tomli_w.dumps({"text": text}).removeprefix("text = ").rstrip("\n")


def _hush_libraries() -> None:
    """Keep the libraries' own bars and notes off the progress."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
