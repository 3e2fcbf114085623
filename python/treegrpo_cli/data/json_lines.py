"""Path -> numbered objects of a JSON Lines file: questions and corpora."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treegrpo_cli.data.json_values import JsonError, parse_json
from treegrpo_cli.data.lines import read_lines
from treegrpo_cli.errors import FileError
from treegrpo_cli.types import Limits


def read_json_lines(path: str | Path, limits: Limits | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON Lines file; blank lines are skipped.

    Raises:
        FileError: a file that cannot be read or goes beyond a limit, a line that is no JSON object.
    """
    limits = limits or Limits()
    for number, line in read_lines(path, limits):
        try:
            value = parse_json(line, limits)
        except JsonError as error:
            raise FileError(path, str(error), number) from None
        if not isinstance(value, dict):
            raise FileError(path, f"must be a JSON object, got {value!r:.100}", number)
        yield number, value
