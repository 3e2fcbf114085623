"""Mistakes of a caller or a file -> one clear line.

Everything that is the user's to mend is a `UserError`; the command line prints its one line and
exits with code 2. Any other exception is our own bug and flies with its traceback.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

LAST_TRACE_LINES = 6
MAX_LINE, MAX_SAID = 500, 300
"""Characters of a line that is said to a person, and of what somebody else's exception says in it."""
CLOSE = 0.65
"""Share of letters that two names have in common, in order, from which one may be meant by the other."""


def bounded(line: str, limit: int = MAX_LINE) -> str:
    """Return the line, its middle left out where it is too long to be read.

    >>> bounded("a long, long line", 9)
    'a lon…ine'
    """
    return line if len(line) <= limit else f"{line[: limit // 2 + 1]}…{line[len(line) - (limit + 1) // 2 + 2 :]}"


def said(error: BaseException) -> str:
    """Return what an exception says, on one line of bounded length; its type where it says nothing.

    >>> said(FileNotFoundError(2, "No such file or directory", "x")), said(ValueError("two\\n lines")), said(KeyError())
    ('No such file or directory', 'two lines', 'KeyError')
    """
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return bounded(" ".join(words.split()), MAX_SAID) or type(error).__name__


class UserError(ValueError):
    """A mistake in what the user typed or wrote; its message is one line of at most `MAX_LINE` characters.

    >>> print(UserError("unknown estimator 'two\\nlines'"))
    unknown estimator 'two\\nlines'

    `trace` has the lines of the traceback where the user's own code raised.
    """

    def __init__(self, message: object = "", trace: Sequence[str] = ()) -> None:
        self.trace = tuple(trace)
        super().__init__(bounded("\\n".join(str(message).splitlines())))

    def __reduce__(self) -> tuple[object, ...]:
        """The same error in another process, whatever its class was made from."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[UserError], args: tuple[object, ...], fields: dict[str, object]) -> UserError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class FileError(UserError):
    """A file that cannot be read or written as asked; names the file and, where known, the line."""

    def __init__(self, path: str | Path, message: str, line: int | None = None) -> None:
        self.path, self.line, self.reason = str(path), line, message
        place = bounded(self.path, MAX_LINE // 2) + ("" if line is None else f":{line}")
        super().__init__(f"{place}: {message}")


class FailedRunError(UserError):
    """More of a run failed than `train.max_failed_fraction` allows; the command line exits with code 1."""


class Problems(UserError):  # noqa: N818 - it reads as what it is
    """All that is wrong with what the user asked for; `lines` has a line for each."""

    def __init__(self, lines: Sequence[str], trace: Sequence[str] = ()) -> None:
        super().__init__("", trace)
        self.lines = tuple(str(UserError(line)) for line in lines)
        self.args = ("\n".join(self.lines),)


class ToolError(RuntimeError):
    """A tool or an environment failed for good; it closes its own branch and no other.

    `trace` has the lines of the traceback of people's own code, where that raised.
    """

    def __init__(self, reason: str = "", trace: Sequence[str] = ()) -> None:
        self.trace = tuple(trace)
        super().__init__(reason)


class LastToolError(ToolError):
    """A failure that another attempt would only repeat."""


class UserCodeError(Exception):
    """Code of the user's raised. `reason` is one line, `trace` the lines of its traceback from its own frames on.

    The exception itself is the `__cause__`.
    """

    def __init__(self, reason: str, trace: Sequence[str] = ()) -> None:
        self.reason, self.trace = reason, tuple(trace)
        super().__init__(reason)


class NoAnswerError(Exception):
    """Code of the user's did not answer in time."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s, self.reason = timeout_s, f"no answer within {timeout_s:g} s"
        super().__init__(self.reason)


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """The user asked to stop, by Ctrl-C or SIGTERM; `hint` says how to go on."""

    def __init__(self, signal_number: int, hint: str = "") -> None:
        self.signal_number, self.hint = signal_number, hint
        super().__init__(signal_number)

    def __str__(self) -> str:
        return self.hint


def debugging() -> bool:
    """Whether whole tracebacks are asked for: `treegrpo --debug`, or TREEGRPO_DEBUG=1."""
    return os.environ.get("TREEGRPO_DEBUG", "0") not in ("", "0")


def last_lines(trace: Sequence[str]) -> list[str]:
    """Return what to show of a traceback of user code: its last lines, none too long; while debugging all as they are.

    >>> [len(line) for line in last_lines(["ValueError: " + "x" * 10_000])]
    [500]
    """
    return list(trace) if debugging() else [bounded(line) for line in trace[-LAST_TRACE_LINES:]]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint such as `did you mean 'clip_low'?`, or the list of valid names where none is near.

    >>> nearest("clip_lo", ["clip_low", "clip_high"])
    "did you mean 'clip_low'?"
    >>> nearest("nope", ["entropies", "num_trees"])
    'valid: entropies, num_trees'
    """
    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=1, cutoff=CLOSE)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(options)}"
