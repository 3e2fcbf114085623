"""A valid file + a seed -> a damaged or hostile one: bytes as a disk or a kill damages them, JSON as a person would."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import orjson

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**32 - 1,
    2**32,
    2**63,
    2**64 - 1,
    -(2**63),
    0.5,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    "",
    " ",
    "a",
    "\x00",
    "\x1b[2J",
    "é" * 200,
    "../../etc/passwd",
    "{{ 7 * 7 }}",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    [1, 2, 3],
    [[0, 1]],
    {"a": {"b": []}},
]
ODD_TEXTS = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b'"\\ud800"',
    b"[" * 2000,
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x00",
    b"18446744073709551616",
    b"{},",
]


def mutated(content: bytes, random_: random.Random) -> bytes:
    """Return `content` with one to three things wrong with it; JSON Lines are damaged inside a line more often."""
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        content = random_.choice((_damage_bytes, _damage_bytes, _damage_json, _damage_json, _damage_json))(
            content, random_
        )
    return content


def _damage_bytes(content: bytes, random_: random.Random) -> bytes:
    return random_.choice(BYTE_DAMAGES)(content, random_)


def _flip(content: bytes, random_: random.Random) -> bytes:
    if not content:
        return b"\x80"
    place = random_.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << random_.randrange(8))]) + content[place + 1 :]


def _cut(content: bytes, random_: random.Random) -> bytes:
    return content[: random_.randrange(len(content) + 1)]


def _drop_piece(content: bytes, random_: random.Random) -> bytes:
    start = random_.randrange(len(content) + 1)
    return content[:start] + content[start + random_.randrange(1, 40) :]


def _repeat_piece(content: bytes, random_: random.Random) -> bytes:
    start = random_.randrange(len(content) + 1)
    piece = content[start : start + random_.randrange(1, 400)]
    return content[:start] + piece * random_.choice((2, 2, 50)) + content[start:]


def _insert(content: bytes, random_: random.Random) -> bytes:
    place = random_.randrange(len(content) + 1)
    return content[:place] + random_.choice(ODD_TEXTS) + content[place:]


def _replace(content: bytes, random_: random.Random) -> bytes:
    del content
    return random_.choice((b"", b"\n", b"null", b"[]", b"{}", b"0", random_.randbytes(random_.randrange(200))))


BYTE_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _cut,
    _drop_piece,
    _repeat_piece,
    _insert,
    _insert,
    _replace,
)


def _damage_json(content: bytes, random_: random.Random) -> bytes:
    """Change one value, key or item in one line; what is no JSON is damaged as bytes."""
    lines = content.split(b"\n")
    place = random_.randrange(len(lines))
    try:
        value = orjson.loads(lines[place])
    except orjson.JSONDecodeError:
        try:  # one document over many lines
            return dump(_changed(orjson.loads(content), random_))
        except orjson.JSONDecodeError:
            return _damage_bytes(content, random_)
    lines[place] = dump(_changed(value, random_))
    return b"\n".join(lines)


def dump(value: Any) -> bytes:
    """JSON of what JSON can hold, surrogates and long integers included."""
    import json

    return json.dumps(value).encode("utf-8", "surrogatepass")


def _changed(value: Any, random_: random.Random) -> Any:
    """Return the value with one place in it changed; the place is found by walking down at random."""
    if isinstance(value, dict) and value and random_.random() < 0.9:
        key = random_.choice(list(value))
        match random_.randrange(8):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, f"{key}_": value[key]}
            case 2:
                return {(f"{key}x" if name == key else name): inner for name, inner in value.items()}
            case _:
                return {**value, key: _changed(value[key], random_)}
    if isinstance(value, list) and value and random_.random() < 0.9:
        place = random_.randrange(len(value))
        match random_.randrange(8):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value[:place], value[place], *value[place:]]
            case 2:
                return value[::-1]
            case _:
                return [_changed(inner, random_) if i == place else inner for i, inner in enumerate(value)]
    return odd_value(value, random_)


def odd_value(value: Any, random_: random.Random) -> Any:
    """Return something else in the place of a value: near it, or of another type."""
    if isinstance(value, int | float) and not isinstance(value, bool) and random_.random() < 0.4:
        return random_.choice([value + 1, value - 1, -value, value * 2, float(value), math.pi, str(value)])
    if isinstance(value, str) and random_.random() < 0.4:
        return random_.choice([value.upper(), value[:-1], value + "\n", value * 3, "\ud800", value.encode().hex()])
    return random_.choice(ODD_VALUES)
