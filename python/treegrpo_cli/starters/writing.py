"""A task and a folder -> the task's files in it; nothing that is there is overwritten."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from treegrpo_cli.errors import FileError, said
from treegrpo_cli.starters.settings_file import settings_text
from treegrpo_cli.starters.tasks import Starter

SETTINGS = "settings.toml"


def write_starter(starter: Starter, folder: Path) -> list[str]:
    """Write the settings file and what it needs; return the names, the settings first.

    Raises FileError where one of them is there already, before any is written, or cannot be written; none is left then.
    """
    texts = {SETTINGS: settings_text(starter), **{name: _text(starter, name) for name in starter.files}}
    for path in (folder / name for name in texts):
        check_new(path)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                written.append(folder / name)
                file.write(text)
    except OSError as error:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise FileError(error.filename or folder, said(error)) from None
    return list(texts)


def check_new(path: Path) -> None:
    """Raise FileError where there is such a file, or its folder is none."""
    try:
        if path.exists() or path.is_symlink():
            raise FileError(path, "is there already, and is not overwritten; nothing was written")
        if os.path.lexists(path.parent) and not path.parent.is_dir():
            raise FileError(path.parent, "is there already, and is no folder; nothing was written")
    except OSError as error:
        raise FileError(path.parent, said(error)) from None


def _text(starter: Starter, name: str) -> str:
    home = files("treegrpo_cli.starters") / "files" / starter.name.replace("-", "_")
    return (home / name).read_text(encoding="utf-8")
