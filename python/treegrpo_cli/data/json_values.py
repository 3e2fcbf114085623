"""Text -> JSON value, exactly or not at all: no integer becomes a float, and nothing fills memory.

orjson reads an integer beyond 64 bits as the float nearest to it. Such a one is looked for among all bytes at
once; only a text that seems to hold one is read again, slowly, to be sure.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from treegrpo_cli.types import Limits

SHAPES = bytes(48 if 48 <= code < 58 else code if code in b"-." else 32 for code in range(256))
"""Every digit as 0, and everything else but a sign or a point as a blank."""

LEAST_DIGITS = b"0" * 19
DIGITS = re.compile(rb"0+")

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1


class JsonError(ValueError):
    """Text that is no JSON that we take; the message is one line, `line` the line within the text."""

    def __init__(self, message: str, line: int = 1) -> None:
        self.line = line
        super().__init__(message)


def parse_json(text: bytes | str, limits: Limits) -> Any:
    """Return the value.

    Raises:
        JsonError: no JSON; more objects and lists than the limit; an integer beyond 64 bits.
    """
    try:
        data = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise JsonError("not JSON: not UTF-8") from None
    if len(data) > limits.max_line_objects and data.count(b"{") + data.count(b"[") > limits.max_line_objects:
        raise JsonError(f"more objects and lists than limits.max_line_objects = {limits.max_line_objects}")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg}, column {error.colno}", error.lineno) from None
    if _seems_beyond_64_bits(data.translate(SHAPES)):
        _check_integers(data)
    return value


def _seems_beyond_64_bits(shapes: bytes) -> bool:
    """Whether 20 digits stand somewhere, or 19 behind a sign; behind a point they are a fraction's."""
    found = shapes.find(LEAST_DIGITS)
    while found >= 0:
        end = _end_of_digits(shapes, found)
        before = shapes[max(found - 1, 0) : found]
        if before == b"-" or (before != b"." and end - found > len(LEAST_DIGITS)):
            return True
        found = shapes.find(LEAST_DIGITS, end)
    return False


def _end_of_digits(shapes: bytes, start: int) -> int:
    digits = DIGITS.match(shapes, start)
    return digits.end() if digits else start


def _check_integers(data: bytes) -> None:
    try:
        json.loads(data, parse_int=_integer, parse_float=str)
    except RecursionError:
        raise JsonError("nested too deep to be read exactly") from None


def _integer(digits: str) -> int:
    if len(digits) > 20 or not MIN_INTEGER <= int(digits) <= MAX_INTEGER:
        raise JsonError(
            f"the integer {digits[:24]}{'…' if len(digits) > 24 else ''} is beyond 64 bits: write it as text"
        )
    return int(digits)
