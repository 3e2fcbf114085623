"""Groups of trees -> lines of preference pairs: what `treegrpo inspect-tree --format pairs` writes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from treegrpo_cli.errors import UserError
from treegrpo_cli.models.pretrained import load_tokenizer
from treegrpo_cli.trees.pairs import check_options, comes_out_as_it_was, pairs_of_group
from treegrpo_cli.trees.tree_record import TreeRecord

TEXTS = "none"
"""In place of a tokenizer."""


def write_pairs(groups: Iterator[Sequence[TreeRecord]], options: Mapping[str, Any]) -> None:
    """Write a line a pair to standard output.

    The tokenizer is the one of the model that grew a tree, or `options["tokenizer"]`; trees without tokens, and
    `tokenizer=none`, take the texts that the file has. Warns of pairs whose tokens TRL would not find again.
    """
    others = {name: value for name, value in options.items() if name != "tokenizer"}
    check_options(others)
    num_pairs = num_other = 0
    for group in groups:
        tokenizer = _tokenizer(group[0], options.get("tokenizer"))
        for row in pairs_of_group(group, tokenizer, others):
            sys.stdout.buffer.write(orjson.dumps(row) + b"\n")
            num_pairs += 1
            num_other += tokenizer is not None and not comes_out_as_it_was(tokenizer, row)
    sys.stdout.buffer.flush()
    if num_other:
        warnings.warn(
            f"{num_other:,} of {num_pairs:,} pairs have texts of which the tokenizer makes other tokens than were "
            "sampled; prompt_ids, chosen_ids and rejected_ids are what was",
            stacklevel=2,
        )


def _tokenizer(record: TreeRecord, given: str | None) -> Any:
    named = given or (record.meta or {}).get("model")
    if given == TEXTS or (given is None and record.nodes[0].get("token_ids") is None) or not isinstance(named, str):
        return None
    try:
        return _loaded(named)
    except UserError as error:
        raise UserError(f"{error}; name another by --option tokenizer=DIR, or none to take the file's texts") from None


@lru_cache(maxsize=4)
def _loaded(path: str) -> Any:
    return load_tokenizer(path)
