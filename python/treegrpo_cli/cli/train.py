"""Settings -> what `treegrpo train` does, and where its result is."""

from __future__ import annotations

from collections.abc import Collection

from treegrpo_cli.cli.libraries import prepare_libraries
from treegrpo_cli.cli.parts import parts_of
from treegrpo_cli.config import Config
from treegrpo_cli.run.progress import Reporter


def run_train(config: Config, *, resume: bool, named: Collection[str] = (), quiet: bool) -> None:
    """Train, and say where the result is."""
    prepare_libraries()
    from treegrpo_cli.run.loop import train

    reporter = Reporter(quiet=quiet)
    with parts_of(config) as parts:
        train(config, reporter, resume=resume, named=named, parts=parts)
    reporter.say(f"checkpoints, metrics.jsonl and trees are in {config.output_dir}")


def check_train(config: Config, *, resume: bool) -> list[str]:
    """Find what is wrong before an engine starts, the run's folder included; return what memory the run needs.

    Raises Problems.
    """
    prepare_libraries()
    from treegrpo_cli.run.directory import RunDirectory
    from treegrpo_cli.run.memory import memory_lines
    from treegrpo_cli.run.preflight import check, training_questions

    directory = RunDirectory(config, resume=resume)
    check(config, training_questions(config), config.report_to, [directory.check], trains=True)
    return memory_lines(config)
