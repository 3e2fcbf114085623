"""Rows of JSON Lines, JSON, Parquet or a dataset -> Tasks, whatever columns they come in.

A row asks by `prompt` (text or messages: TRL, verl, Search-R1) or by `question`. Its answer is the first that
it has of `reward_model.ground_truth`, `ground_truth`, `golden_answers`, `answer`, `answers`, `solution`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli.data.json_lines import read_json_lines
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.types import Message, Task

ANSWER_COLUMNS = ("ground_truth", "golden_answers", "answer", "answers", "solution")

Row = Mapping[str, Any]


def load_tasks(source: str, *, split: str = "train", limit: int = 0, require_answer: bool = False) -> list[Task]:
    """Return the tasks of a file, a saved dataset's directory, or a Hub name (`owner/name[:subset]`).

    `split` is for datasets alone; `limit` 0 reads all rows.

    Raises:
        FileError: names file and line (row, in Parquet and datasets, from 1) of what is no task; empty data.
        UserError: a dataset that cannot be loaded.
    """
    rows = islice(_read_rows(source, split), limit or None)
    tasks = [_checked_task(source, line, row, require_answer) for line, row in rows]
    if not tasks:
        raise FileError(source, "holds no rows")
    return tasks


def task_of(row: Row) -> Task:
    """Return the task of one row.

    Raises:
        ValueError: says which column is missing or of a wrong type.
    """
    prompt, question = row.get("prompt"), row.get("question")
    if prompt is None and question is None:
        raise ValueError(f"no column `prompt` or `question`; columns: {', '.join(map(str, row)) or 'none'}")
    messages = None if prompt is None or isinstance(prompt, str) else _messages(prompt)
    if question is None:
        question = prompt if messages is None else _last_user_content(messages)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question must be a text that is not empty, got {question!r:.100}")
    data_source = row.get("data_source")
    return Task(
        question=prompt if isinstance(prompt, str) else question,
        ground_truth=_ground_truth(row),
        messages=messages,
        data_source=data_source if isinstance(data_source, str) else "",
        columns=dict(row),
    )


def _checked_task(source: str, line: int, row: Row, require_answer: bool) -> Task:
    try:
        task = task_of(row)
    except ValueError as error:
        raise FileError(source, str(error), line) from error
    if require_answer and task.ground_truth in (None, "", [], {}):
        columns = ", ".join(("reward_model.ground_truth", *ANSWER_COLUMNS))
        raise FileError(source, f"no answer; one of these columns must hold it: {columns}", line)
    return task


def _ground_truth(row: Row) -> Any:
    reward_model = row.get("reward_model")
    if isinstance(reward_model, Mapping) and reward_model.get("ground_truth") is not None:
        return reward_model["ground_truth"]
    return next((row[column] for column in ANSWER_COLUMNS if row.get(column) is not None), None)


def _messages(prompt: Any) -> tuple[Message, ...]:
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"`prompt` must be a text or a list of messages, got {prompt!r:.100}")
    return tuple(_message(message) for message in prompt)


def _message(message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"a message of `prompt` needs `role` and `content`, got {message!r:.100}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"the `content` of a message of `prompt` must be text, got {content!r:.100}")
    return {key: value for key, value in message.items() if value is not None} | {"content": content}


def _last_user_content(messages: Iterable[Message]) -> str:
    contents = [message["content"] for message in messages if message["role"] == "user"]
    if not contents:
        raise ValueError("`prompt` has no message of the user")
    return str(contents[-1])


def _read_rows(source: str, split: str) -> Iterator[tuple[int, Row]]:
    path = Path(source)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return read_json_lines(path)
        case ".json":
            return _read_json(path)
        case ".parquet":
            return _read_parquet(path)
    if path.is_file() or not source:
        raise FileError(source or "data", "must end in .jsonl, .json or .parquet, or be the name of a dataset")
    return enumerate(_read_dataset(source, split), start=1)


def _read_json(path: Path) -> Iterator[tuple[int, Row]]:
    """Read a list of rows, numbered from 1, or JSON Lines under the other name."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from error
    if not text.lstrip().startswith(b"["):
        yield from read_json_lines(path)
        return
    try:
        rows = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise FileError(path, f"not JSON: {error}", error.lineno) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise FileError(path, f"row {number} must be an object, got {row!r:.100}")
        yield number, row


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading Parquet needs the package pyarrow") from error
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (OSError, pyarrow.ArrowException) as error:
        raise FileError(path, f"cannot read it as Parquet: {' '.join(str(error).split())}") from error


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
    except Exception as error:  # the network, the Hub and every file format beneath fail in their own ways
        raise UserError(f"cannot load dataset {source!r}, split {split!r}: {_one_line(error)}") from error
    yield from chosen


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
