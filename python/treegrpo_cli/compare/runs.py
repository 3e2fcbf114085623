"""Arms × seeds -> runs in folders of their own, started side by side, resumed where they were broken off.

runs/ARM-seedN/          the run's folder, as `treegrpo train` leaves it
settings/ARM-seedN.toml  what it was started with
logs/ARM-seedN.log       what it said
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli import signals
from treegrpo_cli.compare.arms import Arm
from treegrpo_cli.compare.launch import Launcher, Process
from treegrpo_cli.compare.room import Room
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import dump_config, load_config
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, Stopped, UserError, said
from treegrpo_cli.run.progress import Bar, Reporter
from treegrpo_cli.run.resuming import differences, is_free
from treegrpo_cli.run.spending import Spending, read_metrics

PATIENCE_S = 0.1
"""Between two looks at the processes."""

NUM_EVALUATIONS = 10
"""Over a budget of tokens, where an arm says nothing."""

JUDGES = frozenset({"data.eval", "data.eval_split", "data.eval_limit", "reward.eval_function"})
"""Settings that no training depends on, and every score."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an arm, in the folder of the comparison."""

    arm: str
    seed: int
    folder: Path
    config: Config

    @property
    def name(self) -> str:
        """What its folder is called."""
        return run_name(self.arm, self.seed)

    @property
    def path(self) -> Path:
        """Its own folder."""
        return Path(self.config.output_dir)

    @property
    def log(self) -> Path:
        """What it said."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def settings(self) -> Path:
        """What it was started with."""
        return self.folder / "settings" / f"{self.name}.toml"

    @property
    def is_begun(self) -> bool:
        """Whether its folder holds a run to go on with."""
        return (self.path / "config.toml").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end and evaluated there."""
        return self.is_begun and is_finished(self.config, read_metrics(self.path / "metrics.jsonl"))

    def check_unchanged(self) -> None:
        """Raise UserError where the folder holds a run with other settings."""
        if not self.is_begun:
            return
        saved = load_config(self.path / "config.toml")
        for key, before, after in differences(saved, self.config):
            if key in JUDGES or not is_free(key, self.config):
                raise UserError(
                    f"{self.path}: was begun with {key} = {before!r:.60}, and the arm now has {after!r:.60}; "
                    "choose another --output, or delete that folder"
                )


def run_name(arm: str, seed: int) -> str:
    """What the folder of a run is called."""
    return f"{arm}-seed{seed}"


def is_finished(config: Config, metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run with these lines of metrics is at its end, and was evaluated there."""
    steps = [line for line in metrics if "step_time" in line]
    if not steps or "eval/num_questions" not in metrics[-1]:
        return False
    last = steps[-1]["step"]
    is_last = last >= config.train.num_steps or Spending(steps).total.reaches(config.budget)
    return bool(is_last and metrics[-1]["step"] == last)


def make_runs(arms: Sequence[Arm], seeds: Sequence[int], folder: Path, budget: Mapping[str, float]) -> list[Run]:
    """Return the runs, seed by seed, so that arms stay abreast; `budget` by dotted key.

    An arm without evaluations gets some, where the budget is of tokens.

    Raises UserError for what a comparison cannot do with: no evaluations, or other questions in another arm.
    """
    tokens = int(budget.get("budget.run_tokens", 0))
    default = {"train.eval_tokens": max(1, tokens // NUM_EVALUATIONS)} if tokens else {}
    shared = {arm.name: {**budget, **({} if arm.config().train.evaluates else default)} for arm in arms}
    runs = [
        Run(
            arm.name,
            seed,
            folder,
            arm.config({**shared[arm.name], "seed": seed, "output_dir": str(folder / "runs" / name)}),
        )
        for seed in seeds
        for arm in arms
        for name in [run_name(arm.name, seed)]
    ]
    first = runs[0].config
    for arm, run in zip(arms, runs, strict=False):
        if not run.config.train.evaluates:
            raise UserError(f"{arm.path}: train.eval_tokens or train.eval_steps: the scores come from evaluations")
        for key, before, after in differences(first, run.config):
            if key in JUDGES:
                raise UserError(f"{arm.path}: {key} is {after!r:.60}, and the first arm has {before!r:.60}")
    return runs


@dataclass(slots=True)
class Fleet:
    """Runs on their way: `failed` says why a run ended early, by its name."""

    launcher: Launcher
    reporter: Reporter
    failed: dict[str, str] = field(default_factory=dict)
    _running: dict[str, tuple[Run, Process]] = field(default_factory=dict)
    _signal: int = 0

    def sail(self, runs: Sequence[Run], num_jobs: int, num_threads: int, done: Callable[[Run], str]) -> None:
        """Start the runs that are not finished, so many at once, and wait for all; `done` says how one went.

        Raises Stopped where a signal came, behind the checkpoints of the runs that it stopped.
        """
        waiting = [run for run in runs if not run.is_finished]
        num_done = len(runs) - len(waiting)
        with signals.react(self._on_signal), self.reporter.bar("runs", len(runs), done=num_done) as bar:
            while (waiting and not self._signal) or self._running:
                while waiting and len(self._running) < num_jobs and not self._signal:
                    self._start(waiting.pop(0), num_threads)
                self._collect(bar, done)
                time.sleep(PATIENCE_S)
        if self._signal:
            num_done = sum(run.is_finished for run in runs)
            hint = f"stopped: {num_done} of {len(runs)} runs are finished; the same command goes on from there"
            raise Stopped(self._signal, hint)

    def room(self, run: Run) -> Room:
        """Ask a process of its own how many runs like this one the machine has room for."""
        prepare(run)
        answer = run.folder / "logs" / "room.json"
        answer.unlink(missing_ok=True)
        process = self.launcher.start("treegrpo_cli.compare.room", [str(run.settings)], answer)
        while process.poll() is None:
            time.sleep(PATIENCE_S)
        try:
            return Room(*orjson.loads(answer.read_bytes()))
        except (OSError, ValueError, TypeError):
            return Room("cpu", 1, 0, 0)

    def _start(self, run: Run, num_threads: int) -> None:
        prepare(run)
        arguments = ["train", str(run.settings), "--quiet", *(["--resume"] if run.is_begun else [])]
        process = self.launcher.start("treegrpo_cli", arguments, run.log, num_threads)
        self._running[run.name] = run, process
        if self._signal:  # it came while we started this one
            send(process, self._signal)

    def _collect(self, bar: Bar, done: Callable[[Run], str]) -> None:
        ended = [(run, code) for run, process in self._running.values() if (code := process.poll()) is not None]
        for run, code in ended:
            del self._running[run.name]
            if code == 0 and run.is_finished:
                bar.advance(note=done(run))
            elif not self._signal:
                self.failed[run.name] = why_it_failed(run, code)
                self.reporter.warn(f"{run.name}: {self.failed[run.name]}")
                bar.advance()

    def _on_signal(self, number: int) -> None:
        self._signal = number
        for _, process in self._running.values():
            send(process, number)


def prepare(run: Run) -> None:
    """Make the folders of a run, and write its settings."""
    try:
        for path in (run.log, run.settings, run.path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(run.settings, dump_config(run.config).encode())
    except OSError as error:
        raise FileError(error.filename or run.folder, said(error)) from None


def send(process: Process, number: int) -> None:
    """Ask a process to stop, which may just have done so."""
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


def why_it_failed(run: Run, code: int) -> str:
    """Say how a run ended, and the last thing that it said."""
    ended = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    last = list(_last_lines(run.log))[-1:]
    return f"{ended}; its log is {run.log}" + "".join(f": {line.removeprefix('treegrpo: ')}" for line in last)


def _last_lines(log: Path) -> Iterator[str]:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return
    yield from (line for line in text.splitlines() if line.strip())
