"""Config -> the folder of a run, and what lies in it.

config.toml                      the settings, resolved
metrics.jsonl                    a line a step, and one an evaluation
trees/step-NNNNN.jsonl.zst       the trees of a step, scored
checkpoint-N/                    see `train.checkpoint`
old-N/                           what a resumed run put aside: metrics and trees behind the step it went on from
engine.log                       the engine's own messages
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from treegrpo_cli.config import Config
from treegrpo_cli.config.files import dump_config, load_config
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, said
from treegrpo_cli.run.resuming import check_changes
from treegrpo_cli.train.checkpoint_folders import checkpoints, step_of


class RunDirectory:
    """The folder of one run, locked while entered: two runs never share one.

    One that holds a run is refused unless it is resumed. `changes` are the lines that name what a resumed run does
    otherwise than before; `named` are the dotted keys of settings that may change the result, because somebody
    asked for it by name.
    """

    def __init__(self, config: Config, *, resume: bool, named: Collection[str] = ()) -> None:
        self.path, self._config = Path(config.output_dir).absolute(), config
        self._resume, self._named = resume, named
        self.changes: list[str] = []
        self.is_claimed = False
        self._lock = ExitStack()

    def check(self) -> None:
        """Raise FileError where the folder holds a run and should not, or none and should, or can be none."""
        existing = next(path for path in (self.path, *self.path.parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise FileError(existing, "is no folder")
        holds_run = (self.path / "config.toml").exists()
        if self._resume and not holds_run:
            raise FileError(self.path, "holds no run to resume")
        if holds_run and not self._resume:
            raise FileError(self.path, "already holds a run; continue it with --resume, or choose another output_dir")

    def __enter__(self) -> Self:
        saved = self.path / "config.toml"
        if self._resume:
            self.check()
        try:
            (self.path / "trees").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(self.path, said(error)) from None
        with ExitStack() as stack:
            stack.enter_context(output_lock(self.path))
            if self._resume:
                self.changes = check_changes(load_config(saved), self._config, self._named, saved)
            else:
                self.check()
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def claim(self) -> None:
        """Write `config.toml`: from now on the folder holds this run.

        Called when the first result is there to be kept, so that a run that could not start, for a wrong
        path say, does not stand in the way of the next try.
        """
        if self.is_claimed:
            return
        try:
            write_whole(self.path / "config.toml", dump_config(self._config).encode())
        except OSError as error:
            raise FileError(self.path / "config.toml", said(error)) from None
        self.is_claimed = True

    def trees(self, step: int) -> Path:
        """The tree file of a step, counted from 1."""
        return self.path / "trees" / f"step-{step:05d}.jsonl.zst"

    @property
    def engine_log(self) -> Path:
        """Where the engine's own messages go."""
        return self.path / "engine.log"


def checkpoint_of(run: Path, step: int | None) -> Path:
    """Return a run's checkpoint of `step`, the newest where that is None. Raises FileError where there is none."""
    found = {step_of(path): path for path in checkpoints(run)}
    if not found:
        raise FileError(run, "has no checkpoint yet; --step 0 evaluates the model that it started from")
    if step is not None and step not in found:
        raise FileError(run, f"has no checkpoint of step {step}, only of {', '.join(map(str, found))}")
    return list(found.values())[-1] if step is None else found[step]
