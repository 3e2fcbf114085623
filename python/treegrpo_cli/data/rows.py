"""JSON Lines, JSON, Parquet, a saved dataset or a Hub name -> numbered rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from treegrpo_cli.data.chunks import read_chunks
from treegrpo_cli.data.json_lines import read_json_lines
from treegrpo_cli.data.json_values import JsonError, parse_json
from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.types import Limits

Row = Mapping[str, Any]

BATCH_BYTES, MIN_BATCH_ROWS, MAX_BATCH_ROWS = 2**28, 16, 4096
"""Rows of Parquet that are unpacked at once: so few that one long text, packed once for all rows, fits as often."""


def read_rows(source: str, split: str, limits: Limits) -> Iterator[tuple[int, Row]]:
    """Yield (line or row number from 1, row).

    Raises:
        FileError: names file and line of what cannot be read.
        UserError: a dataset that cannot be loaded.
    """
    path = Path(source)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return read_json_lines(path, limits)
        case ".json":
            return _read_json(path, limits)
        case ".parquet":
            return _read_parquet(path, limits)
    if not source or "\0" in source or _is_file(path):
        raise FileError(source or "data", "must end in .jsonl, .json or .parquet, or be the name of a dataset")
    return enumerate(_read_dataset(source, split), start=1)


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError as error:
        raise FileError(path, said(error)) from None


def _read_json(path: Path, limits: Limits) -> Iterator[tuple[int, Row]]:
    """Read a list of rows, numbered from 1, or JSON Lines under the other name."""
    chunks, text = read_chunks(path, limits), b""
    for chunk in chunks:
        text = chunk.lstrip()
        if text:
            break
    if not text.startswith(b"["):
        yield from read_json_lines(path, limits)
        return
    parts, size = [text], len(text)
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > limits.max_data_bytes:
            raise FileError(path, f"more bytes than limits.max_data_bytes = {limits.max_data_bytes}")
    try:
        rows = parse_json(b"".join(parts), limits)
    except JsonError as error:
        raise FileError(path, str(error), error.line) from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise FileError(path, f"row {number} must be an object, got {row!r:.100}")
        yield number, row


def _read_parquet(path: Path, limits: Limits) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading Parquet needs the package pyarrow: pip install 'treegrpo[train]'") from error
    if _is_file(path) and not path.is_file():
        raise FileError(path, "cannot read it as Parquet: not a regular file")
    number, size = 0, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
            num_rows = min(max(BATCH_BYTES // max([1, *groups]), MIN_BATCH_ROWS), MAX_BATCH_ROWS)
            for batch in file.iter_batches(batch_size=num_rows):
                size += batch.nbytes
                if size > limits.max_data_bytes:
                    raise FileError(
                        path, f"its rows take more bytes than limits.max_data_bytes = {limits.max_data_bytes}"
                    )
                for place in range(batch.num_rows):
                    number += 1
                    [row] = batch.slice(place, 1).to_pylist()
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise FileError(path, f"cannot read it as Parquet: {said(error)}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # bad UTF-8, a date that Python does not have
        if isinstance(error, UserError):
            raise
        raise FileError(path, f"cannot read it as Parquet: {said(error)}", number) from error


def _read_dataset(source: str, split: str) -> Iterator[Row]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"{source}: no such file; datasets of the Hub need the package `datasets`") from error
    name, _, subset = source.partition(":")
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            chosen = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            chosen = datasets.load_dataset(name, subset or None, split=split)
        rows = iter(chosen)
        while (row := next(rows, None)) is not None:
            yield row
    except Exception as error:  # the network, the Hub and every file format beneath fail in their own ways
        raise UserError(
            f"cannot load dataset {source!r}, split {split!r}: {type(error).__name__}: {said(error)}"
        ) from error
