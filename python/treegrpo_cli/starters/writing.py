"""A task and a folder -> the task's files in it; nothing that is there is overwritten."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from treegrpo_cli.errors import FileError, said
from treegrpo_cli.starters.settings_file import settings_text
from treegrpo_cli.starters.tasks import Starter

SETTINGS = "settings.toml"


def write_starter(starter: Starter, folder: Path) -> list[str]:
    """Write the settings file and what it needs; return the names, the settings first.

    Raises FileError where one of them is there already, before any is written, or cannot be written.
    """
    texts = {SETTINGS: settings_text(starter), **{name: _text(starter, name) for name in starter.files}}
    for name in texts:
        if (path := folder / name).exists() or path.is_symlink():
            raise FileError(path, "is there already, and is not overwritten; nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise FileError(error.filename or folder, said(error)) from None
    return list(texts)


def _text(starter: Starter, name: str) -> str:
    home = files("treegrpo_cli.starters") / "files" / starter.name.replace("-", "_")
    return (home / name).read_text(encoding="utf-8")
