"""Names of loggers -> places beside `metrics.jsonl`: TensorBoard, wandb, trackio.

A resumed run goes on in the same place: `loggers.json` in the run's folder keeps what wandb and trackio call it.
Their own environment variables (`WANDB_PROJECT`, `WANDB_NAME`, `WANDB_MODE`, `TRACKIO_PROJECT` …) win over our choice.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import orjson

from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.run.samples import Sample, table_of

Metrics: TypeAlias = Mapping[str, float | str]

PROJECT = "treegrpo"
ENVIRONMENT = {
    "wandb": {"project": "WANDB_PROJECT", "name": "WANDB_NAME", "id": "WANDB_RUN_ID", "dir": "WANDB_DIR"},
    "trackio": {"project": "TRACKIO_PROJECT", "name": "TRACKIO_NAME"},
}
"""Logger -> argument of its `init` -> the variable that decides it where it is set."""


class Logger(Protocol):
    """A place beside `metrics.jsonl` where metrics go."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of one step."""
        ...

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Take some of the step's completions."""
        ...

    def close(self) -> None:
        """Write what is pending."""
        ...


def make_logger(name: str, output_dir: Path, config: Mapping[str, Any], resumed_step: int | None = None) -> Logger:
    """Return the logger of this name; it goes on behind `resumed_step`, or begins (None, or -1: nothing to go on from).

    Raises UserError where its package is missing (saying what to install) or does not start.
    """
    package = import_logger(name)
    goes_on = resumed_step is not None and resumed_step >= 0
    try:
        if name == "tensorboard":
            return TensorBoardLogger(output_dir, resumed_step)
        return RunLogger(name, package, output_dir, config, goes_on=goes_on)
    except UserError:
        raise
    except Exception as error:  # whatever a logger of other people fails with is theirs: say it in a line
        raise UserError(f"report_to: {name} does not start: {type(error).__name__}: {said(error)}") from error


def import_logger(name: str) -> ModuleType:
    """Return the package of a logger. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"report_to: {name} is not installed; pip install {name}") from None


def check_logger(name: str) -> None:
    """Raise UserError where a logger is not installed, or wandb has no account to write to."""
    package = import_logger(name)
    if name == "wandb" and not _wandb_is_ready(package):
        raise UserError("report_to: wandb is not logged in; run `wandb login`, or set WANDB_MODE=offline")


class TensorBoardLogger:
    """Event files under `output_dir/tensorboard`; on resume, events behind the resumed step are hidden."""

    def __init__(self, output_dir: Path, resumed_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if not isinstance(value, str):  # a scalar is a number
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        self._writer.add_text("completions", _markdown(*table_of(samples)), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class RunLogger:
    """A run of wandb or of trackio, which speaks wandb's language; named like the output directory."""

    def __init__(
        self, name: str, package: ModuleType, output_dir: Path, config: Mapping[str, Any], *, goes_on: bool
    ) -> None:
        self._name, self._package, self._has_failed = name, package, False
        names = RunNames(output_dir / "loggers.json", name)
        wanted = {"project": PROJECT, "name": output_dir.resolve().name} | (names.read() if goes_on else {})
        if name == "wandb":
            wanted |= {"dir": str(output_dir)}
        chosen = {key: value for key, value in wanted.items() if not os.environ.get(ENVIRONMENT[name].get(key, ""))}
        if name == "trackio":
            chosen |= {key: os.environ[ENVIRONMENT[name][key]] for key in wanted if key not in chosen}
        resume = "allow" if goes_on or name == "wandb" else "never"
        with redirect_stdout(sys.stderr):  # standard output is for results
            run = package.init(**chosen, config=dict(config), resume=resume)
        names.write({"id": run.id} if name == "wandb" else {"name": run.name})

    def log(self, step: int, metrics: Metrics) -> None:
        self._hand_over(lambda: self._package.log(dict(metrics), step=step))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        columns, rows = table_of(samples)
        self._hand_over(
            lambda: self._package.log({"completions": self._package.Table(columns=columns, data=rows)}, step=step)
        )

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._hand_over(self._package.finish)

    def _hand_over(self, write: Callable[[], Any]) -> None:
        """Write, and warn once where that fails: `metrics.jsonl` has it all, and training goes on."""
        try:
            write()
        except Exception as error:  # a server that is down must not end a run
            if not self._has_failed:
                warnings.warn(
                    f"{self._name} did not accept metrics: {type(error).__name__}: {said(error)}", stacklevel=2
                )
            self._has_failed = True


class RunNames:
    """What a logger calls the run: a table of its own in `loggers.json`."""

    def __init__(self, path: Path, logger: str) -> None:
        self._path, self._logger = path, logger

    def read(self) -> dict[str, str]:
        """Return what was written; nothing where the file is missing or broken: the logger begins anew then."""
        return dict(self._all().get(self._logger, {}))

    def write(self, names: Mapping[str, Any]) -> None:
        """Keep the names. Raises FileError where the disk does not take them."""
        names = {key: str(value) for key, value in names.items()}
        try:
            write_whole(self._path, orjson.dumps({**self._all(), self._logger: names}, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise FileError(self._path, said(error)) from None

    def _all(self) -> dict[str, Any]:
        with suppress(OSError, orjson.JSONDecodeError):
            saved = orjson.loads(self._path.read_bytes())
            if isinstance(saved, dict) and all(isinstance(names, dict) for names in saved.values()):
                return saved
        return {}


def _wandb_is_ready(wandb: ModuleType) -> bool:
    """Whether wandb needs no account (offline, disabled) or has one; nobody is asked, nothing is sent."""
    if wandb.setup().settings.mode not in ("online", "shared"):
        return True
    if "prompt" in signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # an older wandb


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        texts = (str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
