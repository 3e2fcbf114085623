"""Rows -> Tasks, whatever columns they come in.

A row asks by `prompt` (text or messages: TRL, verl, Search-R1) or by `question`. Its answer is the first that
it has of `reward_model.ground_truth`, `ground_truth`, `golden_answers`, `answer`, `answers`, `solution`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any

import orjson

from treegrpo_cli.data.rows import Row, read_rows
from treegrpo_cli.errors import FileError
from treegrpo_cli.types import Limits, Message, Task

ANSWER_COLUMNS = ("ground_truth", "golden_answers", "answer", "answers", "solution")

ROW_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
TEXTUAL = (bytes, date, timedelta, Decimal)
"""What JSON does not know and says itself in words, without an address."""


def load_tasks(
    source: str,
    *,
    split: str = "train",
    limit: int = 0,
    require_answer: bool = False,
    limits: Limits | None = None,
) -> list[Task]:
    """Return the tasks of a file, a saved dataset's directory, or a Hub name (`owner/name[:subset]`).

    `split` is for datasets alone; `limit` 0 reads all rows.

    Raises:
        FileError: names file and line (row, in Parquet and datasets, from 1) of what is no task; empty data;
            data beyond `limits`.
        UserError: a dataset that cannot be loaded.
    """
    limits, tasks, size = limits or Limits(), [], 0
    for line, row in islice(read_rows(source, split, limits), limit or None):
        tasks.append(_checked_task(source, line, row, require_answer))
        size += _size(source, line, row)
        if size > limits.max_data_bytes:
            raise FileError(
                source, f"its rows take more bytes than limits.max_data_bytes = {limits.max_data_bytes}", line
            )
        if not limit and len(tasks) > limits.max_rows:
            raise FileError(
                source,
                f"more rows than limits.max_rows = {limits.max_rows}; data.limit reads only the first ones",
                line,
            )
    if not tasks:
        raise FileError(source, "holds no rows")
    return tasks


def row_digest(row: Row) -> str:
    """Sixteen hex digits that differ where the content of a row does, in whatever order its columns stand."""
    return hashlib.sha256(_row_json(row)).hexdigest()[:16]


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


def _size(source: str, line: int, row: Row) -> int:
    """The bytes of a row as JSON, which trees keep it as."""
    try:
        return len(_row_json(row))
    except TypeError as error:  # nested too deep, an integer beyond 64 bits, half a surrogate pair
        raise FileError(source, f"cannot be written as JSON: {error}", line) from None


def _row_json(row: Row) -> bytes:
    return orjson.dumps(dict(row), default=_text_of, option=ROW_JSON)


def _text_of(value: Any) -> str:
    """What JSON does not know, as text that is the same in every process."""
    return str(value) if isinstance(value, TEXTUAL) else type(value).__qualname__


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
