"""What `treegrpo doctor` does: look at everything, a line each, and write the report."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from treegrpo_cli import signals
from treegrpo_cli.cli.libraries import prepare_libraries
from treegrpo_cli.cli.settings import Flags, read_settings
from treegrpo_cli.config import Config
from treegrpo_cli.doctor.examine import Examination
from treegrpo_cli.doctor.finding import Finding
from treegrpo_cli.doctor.report import check_report, write_report
from treegrpo_cli.doctor.versions import is_complete
from treegrpo_cli.errors import FileError
from treegrpo_cli.run.progress import Reporter

LONG_S = 20.0


def run_doctor(settings: Sequence[str], flags: Flags, report: Path | None, *, quiet: bool) -> int:
    """Look at everything; return how many things are wrong. Raises FileError where the report cannot be written."""
    if report is not None:
        check_report(report)
    if is_complete():
        prepare_libraries()
    reporter = Reporter(quiet=quiet)
    given = bool(settings) or any(value is not None for value in flags.values())
    with Examination((lambda: _read(settings, flags)) if given else None, reporter.say) as examination:

        def stop(number: int) -> None:
            examination.close()
            signals.leave(number, "stopped")

        with signals.react(stop):
            _look(examination, reporter)
        if report is not None:
            write_report(report, examination)
            reporter.say(f"the report is in {report}")
    return sum(finding.verdict == "wrong" for finding in examination.findings)


def _read(settings: Sequence[str], flags: Flags) -> Config:
    """Read the settings; a run's folder stands for those in it."""
    own = Path(settings[0]) / "config.toml" if settings else None
    if own and own.is_file():
        settings = [str(own), *settings[1:]]
    elif own and own.parent.is_dir():
        raise FileError(own.parent, "is a folder without config.toml; give a settings file, or the folder of a run")
    return read_settings(settings, **flags)


@contextmanager
def _patience(reporter: Reporter, what: str) -> Iterator[None]:
    """Say what is looked at where it takes long: it may hang."""
    timer = threading.Timer(LONG_S, reporter.say, [f"still at {what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _look(examination: Examination, reporter: Reporter) -> None:
    """Print a line for each finding as it is made, under the name of its section, and a summary."""
    checks = examination.checks()
    with reporter.bar("checking", len(checks)) as bar:
        for section, group in groupby(checks, key=lambda check: check.section):
            reporter.result(section)
            for check in group:
                bar.advance(0, note=f"{section}, {check.subject}")
                with _patience(reporter, f"{section}, {check.subject}"):
                    found = examination.run(check)
                for finding in found:
                    reporter.result(f"  {finding}")
                bar.advance(1)
    reporter.result(_summary(examination.findings))


def _summary(findings: Sequence[Finding]) -> str:
    count = Counter(finding.verdict for finding in findings)
    absent = f"; {count['not here']} cannot be tried here" if count["not here"] else ""
    return f"{count['right']} right, {count['wrong']} wrong{absent}"
