"""Path -> numbered objects of a JSON Lines file: questions and corpora."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli.errors import FileError


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON Lines file; blank lines are skipped.

    Raises:
        FileError: a file that cannot be read, a line that is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_object(path, number, line)
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from error


def _json_object(path: str | Path, line: int, text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise FileError(path, f"not JSON: {error}", line) from error
    if not isinstance(value, dict):
        raise FileError(path, f"must be a JSON object, got {value!r:.100}", line)
    return value
