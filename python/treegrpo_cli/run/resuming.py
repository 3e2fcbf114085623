"""A run's folder + the settings of today -> what a resumed run may change, and what it puts aside.

Nothing that a run wrote is thrown away: metrics and trees behind the step that is resumed go to `old-N/` in the run's
folder, and the resumed run writes its own.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli.config import Config
from treegrpo_cli.config.effects import CANNOT_CHANGE_THE_RESULT
from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.config.values import flat
from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.trees.sources import step_of


def differences(before: Config, after: Config) -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value after) of every setting that differs."""
    old, new = flat(before.model_dump()), flat(after.model_dump())
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [(key, without_passwords(old.get(key)), without_passwords(new.get(key))) for key in changed]


def check_changes(saved: Config, config: Config, named: Collection[str], path: Path) -> list[str]:
    """Return a line for each changed setting that changes the result and is in `named`.

    Raises UserError for one that is not: a settings file may have been edited for the next run.
    """
    lines = []
    for key, before, after in differences(saved, config):
        if is_free(key, config):
            continue
        if key not in named:
            raise UserError(
                f"{path}: the run has {key} = {before!r}, the settings now say {after!r}; "
                f"to change it, give it on the command line"
            )
        lines.append(
            f"{key} was {before!r} until now and is {after!r} from here on: "
            "the result will differ from that of a run with one value"
        )
    return lines


def put_aside(folder: Path, step: int) -> Path | None:
    """Move metrics and trees of steps behind `step` (-1: of all) to a new `old-N/`; None where there are none.

    A line of metrics that a kill left unfinished goes with them, and all that stands behind it.
    """
    try:
        metrics = folder / "metrics.jsonl"
        kept, cut = _cut_behind(metrics.read_bytes(), step) if metrics.is_file() else (b"", b"")
        trees = [path for path in folder.glob("trees/step-*") if (found := step_of(path)) is not None and found > step]
        if not cut and not trees:
            return None
        aside = _new_folder(folder)
        if cut:
            (aside / metrics.name).write_bytes(cut)
        if trees:
            (aside / "trees").mkdir()
        for path in trees:
            path.rename(aside / "trees" / path.name)
        with open(metrics, "ab") as file:
            file.truncate(len(kept))
    except OSError as error:
        raise FileError(error.filename or folder, said(error)) from None
    return aside


def is_evaluated(folder: Path, step: int) -> bool:
    """Whether `metrics.jsonl` has the evaluation of this step, so that it is not logged twice."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError(folder / "metrics.jsonl", said(error)) from None
    records = [orjson.loads(line) for line in lines]
    return any(record["step"] == step and any(name.startswith("eval/") for name in record) for record in records)


def is_free(key: str, config: Config) -> bool:
    """Whether a setting cannot change the result; a rate that runs to the last step depends on where that is."""
    if key == "train.num_steps":
        return config.optimizer.schedule == "constant" and not config.optimizer.warmup_ratio
    return key in CANNOT_CHANGE_THE_RESULT


def _cut_behind(content: bytes, step: int) -> tuple[bytes, bytes]:
    """Split at the first line that is of a later step, or that a kill left unfinished."""
    whole = 0
    for line in io.BytesIO(content):
        if not line.endswith(b"\n") or _step_of_line(line) > step:
            break
        whole += len(line)
    return content[:whole], content[whole:]


def _step_of_line(line: bytes) -> float:
    try:
        return float(orjson.loads(line)["step"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return float("inf")


def _new_folder(folder: Path) -> Path:
    for aside in _names(folder):
        try:
            aside.mkdir()
        except FileExistsError:
            continue
        return aside
    raise AssertionError  # there is always a next number


def _names(folder: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield folder / f"old-{number}"
        number += 1
