"""Whatever user code raised -> one clean line, and the lines of its own traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from treegrpo_cli.errors import ToolError, UserCodeError, UserError

OUR_FOLDER = str(Path(__file__).parents[1])
MAX_REASON_CHARS = 500
MAX_TRACE_LINES = 400


def user_code_error(error: BaseException) -> UserCodeError:
    """Return the failure as data; frames of this package, which called the user's code, are no part of its trace."""
    try:
        return _read(error)
    except BaseException:  # a class may spoil whatever we ask of its errors
        return UserCodeError(f"{one_line(type(error).__name__)}: (it cannot be read)")


@contextmanager
def looking_at_answers(*ours: type[Exception]) -> Iterator[None]:
    """Turn what people's own objects raise while they are looked at into a `UserCodeError`.

    What we say of them ourselves, and `ours`, flies.

    >>> with looking_at_answers():
    ...     int("seven")
    Traceback (most recent call last):
    treegrpo_cli.errors.UserCodeError: ValueError: invalid literal for int() with base 10: 'seven'
    """
    flying: tuple[type[Exception], ...] = (ToolError, UserError, UserCodeError, *ours)
    try:
        yield
    except flying:
        raise
    except BaseException as error:  # a list of theirs may raise SystemExit when it is asked for its length
        raise user_code_error(error) from error


def _read(error: BaseException) -> UserCodeError:
    name, text = one_line(type(error).__name__), _text(error)
    if text:
        # our own errors were raised for what they say, not for what they are
        name = text if isinstance(error, (ToolError, UserError)) else f"{name}: {text}"
    failure = UserCodeError(name, _trace(error))
    failure.__cause__ = error
    return failure


def one_line(text: str, max_chars: int = MAX_REASON_CHARS) -> str:
    """Return `text` on one line, without lone surrogates, and no longer than asked.

    >>> one_line("no\\n route \\ud800")
    'no route ?'
    """
    return clean(" ".join(text[: 4 * max_chars].split()))[:max_chars]


def clean(text: str) -> str:
    """Return `text` with a question mark for every lone surrogate, which no file and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _text(error: BaseException) -> str:
    try:
        return one_line(str(error))
    except BaseException as second:  # a __str__ may raise anything too
        return f"(its text cannot be read: {one_line(type(second).__name__)})"


def _trace(error: BaseException) -> tuple[str, ...]:
    frames: TracebackType | None = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(OUR_FOLDER):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # an exception class may spoil its own printing
        text = "".join(traceback.format_tb(frames))
    return tuple(clean(text).splitlines()[-MAX_TRACE_LINES:])
