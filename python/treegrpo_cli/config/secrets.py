"""Settings -> the same without passwords in addresses: for screens, loggers and files that are handed on."""

from __future__ import annotations

import re
from typing import TypeVar

Value = TypeVar("Value")

_USER_AND_PASSWORD = re.compile(r"(\w://)[^/\s\"'@]*(?:@[^/\s\"'@]*)*@")


def without_passwords(value: Value) -> Value:
    """Return a text, or tables and lists of them, with `***` for the user and password of every address.

    >>> without_passwords({"retriever_url": "http://me:secret@host:8000/retrieve"})
    {'retriever_url': 'http://***@host:8000/retrieve'}
    """
    if isinstance(value, str):
        return _USER_AND_PASSWORD.sub(r"\1***@", value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: without_passwords(inner) for key, inner in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [without_passwords(inner) for inner in value]  # type: ignore[return-value]
    return value
