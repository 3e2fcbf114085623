"""Name of an output file -> one that can be written, or one clear line before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

from treegrpo_cli.errors import FileError, said

MAX_NAME_BYTES = 200
"""File systems allow 255; the journal and others beside a file have names that are longer than its own."""


def check_output(path: Path) -> None:
    """Raise FileError where no file can be written under this name."""
    if "\0" in str(path):
        raise FileError(path, "the name contains a NUL character")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise FileError(os.fsencode(path).decode(errors="replace"), "its name is not UTF-8") from None
    try:
        if not path.name or path.name == ".." or path.is_dir():
            raise FileError(path, "is a folder; give the name of a file")
        if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
            raise FileError(path, f"the file name is longer than {MAX_NAME_BYTES} bytes")
        if not path.parent.is_dir():
            raise FileError(path.parent, "no such folder")
        if path.exists() and not path.is_file():
            raise FileError(path, "is not a regular file")
    except OSError as error:
        raise FileError(path, said(error)) from None


def check_new(path: Path, remedy: str) -> None:
    """Raise FileError, which names the remedy, where there is such a file, or cannot be one."""
    check_output(path)
    if path.exists():
        raise FileError(path, f"exists; {remedy}")
