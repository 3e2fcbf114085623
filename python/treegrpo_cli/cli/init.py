"""What `treegrpo init` does: write a task's files, and say what to run next."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

from treegrpo_cli.errors import UserError
from treegrpo_cli.starters import STARTERS, find_starter, write_starter


def list_tasks() -> None:
    """Print the tasks, a line each."""
    width = max(map(len, STARTERS))
    for starter in STARTERS.values():
        print(f"{starter.name:<{width}}  {starter.summary}")
    print("\ntreegrpo init TASK FOLDER writes one of them")


def check_model(model: str) -> None:
    """Raise UserError for what cannot stand in a settings file."""
    if not model:
        raise UserError("--model '': expected a folder, or the name of a model on the Hub")
    try:
        model.encode()
    except UnicodeEncodeError:
        raise UserError(f"--model {model!r:.200}: its name is not UTF-8") from None


def start(task: str, folder: Path, model: str | None) -> None:
    """Write a task's files into a folder; a model's folder stays the same one, seen from there. Raises UserError."""
    starter = find_starter(task)
    if model is not None:
        check_model(model)
        path = os.path.relpath(model, folder) if Path(model).is_dir() and not Path(model).is_absolute() else model
        starter = replace(starter, chosen={"model.path": path})
    names = write_starter(starter, folder)
    print("wrote", ", ".join(str(folder / name) for name in names))
    print("next:")
    if folder != Path():
        print(f"  cd {shlex.quote(str(folder))}")
    for command in ("doctor settings.toml", "train settings.toml --dry-run", "train settings.toml"):
        print(f"  treegrpo {command}")
