"""Files of settings -> the arms of a comparison, and an arm with a seed -> the Config of one run.

An arm's settings are those of the common file, its own file over them, and the command line's over both. Its name is
the file's without ending, or `name = "..."` at the top of the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treegrpo_cli.config import Config
from treegrpo_cli.config.documents import read_document
from treegrpo_cli.config.files import layered, make_config
from treegrpo_cli.errors import FileError, UserError

MAX_SEEDS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
"""Of an arm: a folder is called so."""

SET_BY_COMPARE = {
    "seed": "--seeds says which",
    "output_dir": "--output says where",
    "budget.run_tokens": "--budget-tokens sets it",
    "budget.run_tool_calls": "--budget-tool-calls sets it",
    "budget.run_seconds": "--budget-seconds sets it",
}
"""Settings that every run gets from the comparison, whatever an arm's file says."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train; `settings` is a tree in the shape of a file, `path` where it came from, `overrides` aside."""

    name: str
    path: Path
    settings: Mapping[str, Any]
    overrides: Sequence[str] = ()

    def config(self, changes: Mapping[str, Any] | None = None) -> Config:
        """Return the settings of a run, with `changes` by dotted key (a seed, a folder, a budget).

        Raises UserError, naming file or command line and key, for a setting that is wrong.
        """
        tree = dict(self.settings)
        for key, value in (changes or {}).items():
            section, dot, name = key.rpartition(".")
            tree |= {section: {**tree.get(section, {}), name: value}} if dot else {name: value}
        return make_config(tree, str(self.path), self.overrides)


def load_arms(files: Sequence[Path], common: Path | None = None, overrides: Iterable[str] = ()) -> list[Arm]:
    """Read the files of the arms, in their order, each over `common` and under `overrides`; check all settings.

    Raises FileError and UserError for what cannot be read or is wrong, and for two arms of one name.
    """
    overrides = list(overrides)
    for key in (override.partition("=")[0] for override in overrides):
        if key in SET_BY_COMPARE:
            raise UserError(f"{key}: every run has its own; {SET_BY_COMPARE[key]}")
    below = [] if common is None else [(str(common), read_document(common))]
    arms = [_load(file, below, overrides) for file in files]
    for name, count in Counter(arm.name for arm in arms).items():
        if count > 1:
            raise UserError(f'{count} arms are called {name!r}; give one another name, by name = "..." in its file')
    return arms


def parse_seeds(text: str) -> list[int]:
    """Read `5`, the first five, or `3,7,11`, those.

    >>> parse_seeds("3"), parse_seeds("3,7,11"), parse_seeds("7,")
    ([0, 1, 2], [3, 7, 11], [7])
    """
    parts = text.removesuffix(",").split(",")
    if not all(re.fullmatch(r"\d{1,18}", part.strip(), re.ASCII) for part in parts):
        raise UserError(f"--seeds {text!r:.60}: expected how many, as 5, or which, as 3,7,11")
    numbers = [int(part) for part in parts]
    seeds = numbers if "," in text else list(range(min(numbers[0], MAX_SEEDS + 1)))
    if not 0 < len(seeds) <= MAX_SEEDS:
        raise UserError(f"--seeds {text!r:.60}: expected 1 to {MAX_SEEDS} seeds")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text!r:.60}: names a seed twice")
    return seeds


def _load(file: Path, below: Sequence[tuple[str, Mapping[str, Any]]], overrides: Sequence[str]) -> Arm:
    document = read_document(file)
    name = document.pop("name", file.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise FileError(file, f"an arm is called by letters, digits, '.', '_', '+' and '-', got {name!r:.60}")
    arm = Arm(name, file, layered([*below, (str(file), document)], overrides), overrides)
    arm.config()
    return arm
