"""Plain data <-> bytes between processes: exactly what went in comes out, and reading runs nobody's code.

JSON has no tuples, bytes, dates or arrays, and takes text alone for keys; those stand as `{"$": [kind, value]}`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from treegrpo_cli.rewards.base import LeafReward, RewardFailure
from treegrpo_cli.types import Action, Limits, Rollout, StepResult, Task, ToolCall

TAG = "$"
AS_THEY_ARE = frozenset((str, int, float, bool, type(None)))
OURS = {cls.__name__: cls for cls in (Action, LeafReward, Limits, RewardFailure, Rollout, StepResult, Task, ToolCall)}


class NotPlainError(TypeError):
    """A value that no other process can be sent; says which kind of value it is."""


def to_bytes(value: Any) -> bytes:
    """Return the value as bytes.

    >>> from_bytes(to_bytes({"point": (1, 2.5), 3: b"x"}))
    {'point': (1, 2.5), 3: b'x'}

    Raises:
        NotPlainError: there is something else in it.
    """
    try:
        return json.dumps(_plain(value), separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError) as error:
        raise NotPlainError(f"something that cannot be written: {error}") from None


def from_bytes(data: bytes | bytearray) -> Any:
    """Return the value that `to_bytes` was given."""
    return json.loads(data, object_hook=_whole)


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in AS_THEY_ARE:
        return value
    if kind is list:
        return [_plain(part) for part in value]
    if kind is dict:
        if all(type(key) is str for key in value) and TAG not in value:
            return {key: _plain(part) for key, part in value.items()}
        return {TAG: ["dict", [[_plain(key), _plain(part)] for key, part in value.items()]]}
    if kind.__name__ in OURS and OURS[kind.__name__] is kind:
        return {TAG: [kind.__name__, {field.name: _plain(_part(value, field.name)) for field in fields(kind)}]}
    name = "array" if isinstance(value, (np.ndarray, np.generic)) else kind.__name__
    if name not in KINDS or KINDS[name][0] not in kind.__mro__:
        raise NotPlainError(f"a {kind.__name__}")
    return {TAG: [name, KINDS[name][1](value)]}


def _part(value: Any, name: str) -> Any:
    part = getattr(value, name)
    return dict(part) if isinstance(part, Mapping) else part


def _whole(found: dict[str, Any]) -> Any:
    if len(found) != 1 or TAG not in found:
        return found
    name, value = found[TAG]
    return OURS[name](**value) if name in OURS else KINDS[name][2](value)


def _array_out(value: Any) -> list[Any]:
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.names:
        raise NotPlainError(f"an array of {array.dtype}")
    return [array.dtype.str, list(array.shape), not isinstance(value, np.ndarray), _text(array.tobytes())]


def _array_in(written: list[Any]) -> Any:
    dtype, shape, is_scalar, text = written
    array = np.frombuffer(_bytes(text), dtype=np.dtype(dtype)).reshape(shape).copy()
    return array[()] if is_scalar else array


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, lambda value: [_plain(part) for part in value], tuple),
    "dict": (dict, dict, dict),
    "bytes": (bytes, _text, _bytes),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (timedelta, lambda value: [value.days, value.seconds, value.microseconds], lambda d: timedelta(*d)),
    "Decimal": (Decimal, str, Decimal),
    "array": (object, _array_out, _array_in),
}
"""Name -> its type, and the ways to JSON and back."""
