"""What a tool raised -> a line for the policy, and a warning for whoever wrote it."""

from __future__ import annotations

import logging

from treegrpo_cli.errors import UserCodeError, last_lines

logger = logging.getLogger(__name__)

_said: set[tuple[str, str]] = set()


def error_text(error: UserCodeError) -> str:
    """Return what the policy sees."""
    return f"Error: {error.reason}"


def report_raised(name: str, error: UserCodeError) -> None:
    """Log once for each kind of error of a tool what it raised and where: the traceback's last lines, or all."""
    kind = name, type(error.__cause__).__name__
    if kind in _said:
        return
    _said.add(kind)
    lines = last_lines(error.trace)
    more = "" if len(lines) == len(error.trace) else " (the whole traceback: treegrpo --debug ...)"
    logger.warning(
        "%s raised %s (reported once for each kind of error)%s\n%s", name, error.reason, more, "\n".join(lines)
    )
