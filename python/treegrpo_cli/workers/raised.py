"""What was raised in a worker -> plain data -> the same failure in the driver, with its text and its traceback."""

from __future__ import annotations

import traceback
from typing import Any

from treegrpo_cli.envs.outside import is_outside
from treegrpo_cli.errors import LastToolError, NoAnswerError, ToolError, UserCodeError, UserError


class WorkerError(RuntimeError):
    """A mistake of our own, raised in a worker; its text is the traceback there."""


def as_data(error: BaseException) -> dict[str, Any]:
    """Return what the driver must know of it."""
    if isinstance(error, NoAnswerError):
        return {"kind": "no-answer", "timeout_s": error.timeout_s}
    if isinstance(error, UserCodeError):
        return {
            "kind": "user-code",
            "reason": error.reason,
            "trace": list(error.trace),
            "cause": type(error.__cause__).__name__,
            "is_outside": is_outside(error),
            "is_users": isinstance(error.__cause__, UserError),
        }
    for kind, cls in FAILURES.items():
        if isinstance(error, cls):
            return {"kind": kind, "reason": str(error), "trace": list(error.trace)}
    return {"kind": "bug", "reason": "".join(traceback.format_exception(error))}


def as_error(data: dict[str, Any]) -> Exception:
    """Return what to raise in the driver."""
    kind, reason = data["kind"], data.get("reason", "")
    if kind == "no-answer":
        return NoAnswerError(data["timeout_s"])
    if kind == "user-code":
        error = UserCodeError(reason, data["trace"])
        error.__cause__ = _cause(data)
        return error
    return FAILURES[kind](reason, data["trace"]) if kind in FAILURES else WorkerError(reason)


def _cause(data: dict[str, Any]) -> Exception:
    """Stand in for the exception itself: what is asked of it is its name, and whether to try again."""
    if data["is_outside"]:
        return ToolError(data["reason"])
    if data["is_users"]:
        return UserError(data["reason"])
    stand_in: Exception = type(data["cause"], (Exception,), {})(data["reason"])
    return stand_in


FAILURES: dict[str, type[LastToolError] | type[ToolError] | type[UserError]] = {
    "last-tool": LastToolError,
    "tool": ToolError,
    "user": UserError,
}
"""A subclass stands before its class."""
