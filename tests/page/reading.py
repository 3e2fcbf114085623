"""What a page holds, read back without its script."""

from __future__ import annotations

import base64
import json
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Blocks(HTMLParser):
    """Collects the blocks of data of a page, its script, its style and its policy."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.blocks: dict[str, str] = {}
        self.policy, self._name = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._name = given.get("id") or tag if tag in ("script", "style") else ""
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._name = ""

    def handle_data(self, data: str) -> None:
        if self._name:
            self.blocks[self._name] = self.blocks.get(self._name, "") + data


def read_page(path: Path) -> Blocks:
    """The page's parts."""
    found = Blocks()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def block(path: Path, name: str) -> Any:
    """A block of data."""
    return json.loads(read_page(path).blocks[f"treegrpo-{name}"])


def unpacked(text: str, letter: str) -> list[Any]:
    """The numbers of a column; `letter` is their type in `struct`, NaN is None."""
    numbers = [value for (value,) in struct.iter_unpack(f"<{letter}", base64.b64decode(text))]
    return [None if value != value else value for value in numbers]
