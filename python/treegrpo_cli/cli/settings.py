"""Typed `[CONFIG] [RUN] [KEY=VALUE]...` and flags -> Config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import tomli_w

from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.run.resuming import differences


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
        raise UserError(f"{settings[0]}: is a folder; add --resume to continue the run in it")
    return load_config(*_file_and_overrides(settings, **flags))


def read_resumed_settings(settings: Sequence[str], **flags: Unpack[Flags]) -> tuple[Config, set[str]]:
    """Read `[CONFIG] [RUN] [KEY=VALUE]...` of a run that is resumed, and the settings that were changed by name.

    Without CONFIG they are the run's own, from the folder RUN; without RUN the folder is that of the settings.
    """
    folders = [text for text in settings if os.path.isdir(text)]
    file, overrides = _file_and_overrides([text for text in settings if text not in folders[:1]], **flags)
    if folders:
        if any(override.startswith("output_dir=") for override in overrides):
            raise UserError(f"output_dir: the run to resume is already named, {folders[0]}; leave out one of the two")
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


def quoted(text: str) -> str:
    """The text as a TOML string."""
    return tomli_w.dumps({"text": text}).removeprefix("text = ").rstrip("\n")
