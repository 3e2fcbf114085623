"""Token ids -> their texts, from a folder's `tokenizer.json` alone: no code of a model's folder is run.

A piece of a byte-level tokenizer that is part of a character is shown by its escaped bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.trees.tree_record import TreeRecord

FILE = "tokenizer.json"


class Vocabulary:
    """Texts of the tokens of one tokenizer."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where there is no tokenizer that can be read, or no library to read it."""
        file = folder / FILE if folder.is_dir() else folder
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError("token texts need tokenizers: pip install 'treegrpo[train]'") from None
        try:
            settings = json.loads(file.read_bytes())
            self._tokenizer = Tokenizer.from_file(str(file))
        except OSError as error:
            raise FileError(file, said(error)) from None
        except Exception as error:  # the library has none of its own
            raise FileError(file, f"no tokenizer: {said(error)}") from None
        kinds = set(_kinds(settings.get("decoder")))
        self._added = {token["id"] for token in settings.get("added_tokens") or ()}
        self._is_byte_level, self._is_metaspace = "ByteLevel" in kinds, bool(kinds & {"Metaspace", "ByteFallback"})
        self.is_spaced = not kinds
        """Whether a blank stands between two tokens that neither of them holds."""

    def text(self, token_id: int) -> str | None:
        """The token's text; None where the tokenizer has no such token."""
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None or token_id in self._added:
            return piece
        if self._is_byte_level and all(char in BYTES for char in piece):
            return bytes(BYTES[char] for char in piece).decode(errors="backslashreplace")
        if self._is_metaspace:
            return _of_byte(piece) or piece.replace("▁", " ")
        return piece


class Vocabularies:
    """The vocabularies of trees: the given one's for all, else those of the models that grew them, where they are."""

    def __init__(self, given: Path | None = None) -> None:
        """Raises UserError where `given` cannot be read."""
        self._all: list[tuple[Vocabulary, set[int]]] = []
        self._places: dict[str, int] = {}
        self._given = None if given is None else self._add(Vocabulary(given))

    def place(self, record: TreeRecord) -> int:
        """The place of a tree's vocabulary among `blocks`, -1 where there is none; its tokens will be in there."""
        place = self._given if self._given is not None else self._of_model((record.meta or {}).get("model"))
        if place >= 0:
            for node in record.nodes:
                self._all[place][1].update(node.get("token_ids") or ())
        return place

    def blocks(self) -> list[dict[str, Any]]:
        """Ids and texts of the tokens that occur, in their order."""
        return [_block(vocabulary, sorted(ids)) for vocabulary, ids in self._all]

    def forget(self) -> None:
        """Start anew with tokens that occur: the next page has trees of its own."""
        for _, ids in self._all:
            ids.clear()

    def _of_model(self, model: Any) -> int:
        if not isinstance(model, str) or "\0" in model:
            return -1
        if model not in self._places:
            self._places[model] = self._found(Path(model))
        return self._places[model]

    def _found(self, folder: Path) -> int:
        try:
            return self._add(Vocabulary(folder)) if (folder / FILE).is_file() else -1
        except (UserError, OSError):
            return -1

    def _add(self, vocabulary: Vocabulary) -> int:
        self._all.append((vocabulary, set()))
        return len(self._all) - 1


def _block(vocabulary: Vocabulary, ids: Sequence[int]) -> dict[str, Any]:
    return {"ids": ids, "texts": [vocabulary.text(token_id) for token_id in ids], "spaced": vocabulary.is_spaced}


def _kinds(decoder: Any) -> Iterable[str]:
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders") or ():
            yield from _kinds(inner)


def _of_byte(piece: str) -> str | None:
    """The text of a byte's own piece, as `<0x41>`."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)]).decode(errors="backslashreplace")
    return None


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for those from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_characters()
