"""Draws the pictures of docs/concepts anew: `python -m docs.pictures`."""

from collections.abc import Callable, Mapping
from pathlib import Path

from docs.pictures.credit import siblings, values
from docs.pictures.every_token_once import every_token_once
from docs.pictures.scheduling import scheduling
from docs.pictures.svg import Picture

FOLDER = Path(__file__).parent
PICTURES: Mapping[str, Callable[[], Picture]] = {
    "credit-values.svg": values,
    "credit-siblings.svg": siblings,
    "every-token-once.svg": every_token_once,
    "scheduling.svg": scheduling,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(str(draw()), encoding="utf-8")
