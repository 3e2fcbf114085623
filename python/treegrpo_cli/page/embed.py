"""Python values -> text that stands in an HTML page and cannot end, begin or run anything there."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def json_block(name: str, value: Any) -> bytes:
    """A block of data that the page's script reads by its name; it holds no character that HTML knows.

    A lone surrogate stays what it is, as JSON's own escape.

    >>> json_block("a", ["</script>", "\\ud800"]).decode()
    '<script type="application/json" id="a">["\\\\u003c/script\\\\u003e","\\\\ud800"]</script>\\n'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(UNSAFE)
    return f'<script type="application/json" id="{name}">{text}</script>\n'.encode("utf-8", "backslashreplace")


def packed(column: ArrayLike, dtype: DTypeLike) -> str:
    """A column's little-endian bytes in base64.

    >>> packed([1, 2], np.uint16)
    'AQACAA=='
    """
    array = np.asarray(column, dtype=np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()
