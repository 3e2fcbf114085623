"""A run's folder, again and again -> what came since, and whether the run goes on. It reads, and touches nothing.

A run goes on while its lock file is there and the process that the file names lives. A lock whose process is not on
this machine may be of a run on another one: it counts as going on while metrics still come.
"""

from __future__ import annotations

import os
import time
from collections import deque
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.plots.history import History
from treegrpo_cli.run.spending import Spent, parse_line

PATIENCE_S, PATIENCE_STEPS = 60.0, 10.0
"""How long a run on another machine may be silent: so many seconds, and so many of its steps."""
NUM_RECENT = 20
"""Steps that the time left is estimated from."""
TAIL_BYTES = 256


class State(StrEnum):
    """How it is with a run."""

    WAITING = "not there yet"
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped before its end"
    KILLED = "killed, or running on another machine without a step for long"

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of itself."""
        return self in (State.FINISHED, State.STOPPED, State.KILLED)


class Follower:
    """What is known of a run that may still be going on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Config | None = None
        self.state = State.WAITING
        self._forget()

    def _forget(self) -> None:
        self.history = History()
        self.recent: deque[Spent] = deque(maxlen=NUM_RECENT)
        self._seen: tuple[int, int, int] | None = None
        self._offset = self._number = 0
        self._tail = b""

    @property
    def step(self) -> int:
        """The last step that is told, 0 before the first."""
        return int(self.history.last.get("step", 0))

    def look(self) -> bool:
        """Read what is new, and return whether anything is. Raises FileError for what is no file of metrics."""
        before = self.state
        has_grown = self._read()
        if self.config is None or has_grown:
            self._read_config()
        self.state = self._state()
        return has_grown or self.state != before

    def share_done(self) -> float | None:
        """How much of the run is behind it, by steps or by what it may spend; None where that is not known yet."""
        shares = [done / limit for done, _, limit in self._limits()]
        return min(max(shares), 1.0) if shares else None

    def seconds_left(self) -> float | None:
        """Estimate from the last steps, and from all evaluations; None before the first step."""
        if not self.recent or not self._limits():
            return None
        steps_left = min(max(limit - done, 0) / each for done, each, limit in self._limits() if each > 0)
        evaluating = float(_sum(self.history, "time/evaluation")) / max(self.history.num_steps, 1)
        return steps_left * (sum(spent.seconds for spent in self.recent) / len(self.recent) + evaluating)

    def _limits(self) -> list[tuple[float, float, float]]:
        """(so far, each step, limit) of steps, tokens, tool calls and seconds, where there is a limit."""
        if self.config is None:
            return []
        budget, num = self.config.budget, max(len(self.recent), 1)
        recent = sum(self.recent, Spent())
        spent = zip(self.history.spent.all, recent.all, strict=True)
        limits = (budget.run_tokens, budget.run_tool_calls, budget.run_seconds)
        rows = [(done, each / num, limit) for (done, each), limit in zip(spent, limits, strict=True) if limit]
        return [(self.step, 1.0, self.config.train.num_steps), *rows]

    def _read(self) -> bool:
        path = self.folder / "metrics.jsonl"
        try:
            found = path.stat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return False
            with open(path, "rb") as file:
                if self._offset and (self._seen is None or not self._goes_on(file, found)):
                    self._forget()
                self._seen = seen
                return self._take(path, file)
        except FileNotFoundError:
            was_there = self._seen is not None
            self._forget()
            return was_there
        except OSError as error:
            raise FileError(path, said(error)) from None

    def _goes_on(self, file: BinaryIO, found: os.stat_result) -> bool:
        """Whether what was read is still there: a run that resumes cuts the file, and may have written more since."""
        if self._seen is None or found.st_ino != self._seen[0] or found.st_size < self._offset:
            return False
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _take(self, path: Path, file: BinaryIO) -> bool:
        """Take the whole lines behind those that were read."""
        file.seek(self._offset)
        before = self._number
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._number += 1
            record = parse_line(path, self._number, line)
            self.history.add(record)
            if "step_time" in record:
                self.recent.append(Spent.on(record))
            self._offset += len(line)
            self._tail = (self._tail + line)[-TAIL_BYTES:]
        return self._number > before

    def _read_config(self) -> None:
        try:
            self.config = load_config(self.folder / "config.toml")
        except UserError:  # not written yet, or of another version: the run is followed without its end
            self.config = None

    def _state(self) -> State:
        has_lines = len(self.history) > 0
        holder = lock_holder(self.folder)
        if holder is None:
            if not has_lines:
                return State.WAITING
            share = self.share_done()
            return State.FINISHED if share is not None and share >= 1 else State.STOPPED
        if not lives(holder) and self._silent_s() > self._patience_s():
            return State.KILLED if has_lines else State.WAITING
        return State.RUNNING if has_lines else State.STARTING

    def _silent_s(self) -> float:
        times = []
        for name in ("metrics.jsonl", ".lock"):
            try:
                times.append((self.folder / name).stat().st_mtime)
            except OSError:
                continue
        return time.time() - max(times, default=0.0)

    def _patience_s(self) -> float:
        mean = sum(spent.seconds for spent in self.recent) / max(len(self.recent), 1)
        return max(PATIENCE_S, PATIENCE_STEPS * mean)


def lock_holder(folder: Path) -> int | None:
    """Return the process that writes a run, 0 where its lock does not say which; None where nobody does."""
    try:
        text = (folder / ".lock").read_bytes()[:20]
    except OSError:
        return None
    return int(text) if text.strip().isdigit() else 0


def lives(process: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(process, 0) if process > 0 else None
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return process > 0


def _sum(history: History, name: str) -> float:
    column = history.column(name)
    return float(column[column == column].sum())
