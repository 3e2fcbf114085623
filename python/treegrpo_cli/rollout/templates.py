"""Messages -> the text that a model's chat template writes, within limits of time, memory and length.

A template is a program that came with a model. It runs in the sandbox that transformers gives it, which stops it
from reaching outside but not from running for ever, so it runs in a thread that is told to stop. One instruction that
never ends hears nothing: while a template runs, the process gets no more than so much memory, and numbers stay small.
"""

from __future__ import annotations

import ctypes
import functools
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserCodeError, UserError
from treegrpo_cli.types import Message
from treegrpo_cli.user_code import one_line, user_code_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXT_CHARS = 1 << 26
MAX_OWN_CHARS, MAX_GROWTH = 1 << 20, 8
"""Characters that a template writes of its own, and those that one of a message becomes (in JSON): all tokenised."""
MAX_MEMORY_BYTES = 1 << 30
"""A template that makes the process grow by more is stopped."""
MAX_NUMBER_BITS = 4096
LOOK_S = 0.05
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class RefusalError(UserError):
    """The template does not take these messages, or leaves some of them out; it may take others."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    *,
    timeout_s: float,
    reply: bool = True,
) -> str:
    """Return the conversation as the template writes it, up to where the next turn starts (its end without `reply`).

    Raises:
        RefusalError: the template refuses these messages.
        UserError: it does not end in time, takes too much memory, or writes no text or too much of it.
    """
    _keep_numbers_small()
    write = functools.partial(
        tokenizer.apply_chat_template,
        list(messages),
        tools=list(tools) or None,
        add_generation_prompt=reply,
        tokenize=False,
    )
    try:
        with _little_memory():
            text = _stoppable(write, timeout_s)
    except UserCodeError as error:
        if isinstance(error.__cause__, MemoryError):
            raise _too_much_memory() from error
        raise RefusalError(f"chat template: cannot write these messages: {_reason(error)}") from error
    if not isinstance(text, str) or len(text) > _most_chars(messages, tools):
        size = f"{len(text):,} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise UserError(f"chat template: writes {size} for {len(messages)} messages")
    return text


def _most_chars(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
    """Return the characters that these messages and tools may become."""
    return min(MAX_TEXT_CHARS, MAX_OWN_CHARS + MAX_GROWTH * len(repr([messages, tools])))


def _reason(error: UserCodeError) -> str:
    import jinja2

    cause = error.__cause__
    line = f"line {cause.lineno}: " if isinstance(cause, jinja2.TemplateSyntaxError) else ""
    return f"{line}{one_line(str(cause))}" if isinstance(cause, jinja2.TemplateError) else error.reason


def _too_much_memory() -> UserError:
    return UserError(f"chat template: takes more than {MAX_MEMORY_BYTES >> 20} MiB of memory")


@functools.cache
def _keep_numbers_small() -> None:
    """Have the sandbox of templates ask before it multiplies; for all templates of this process."""
    from jinja2 import sandbox
    from jinja2.exceptions import SecurityError

    sandbox.SandboxedEnvironment.intercepted_binops = frozenset({"*", "**"})
    multiply = sandbox.SandboxedEnvironment.call_binop

    def call_binop(self: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_NUMBER_BITS:
                raise SecurityError("numbers of this size are not for templates")
        return multiply(self, context, operator, left, right)

    sandbox.SandboxedEnvironment.call_binop = call_binop  # type: ignore[method-assign]


@contextmanager
def _little_memory() -> Iterator[None]:
    """Refuse whatever takes much more address space, where the system can; the event loop waits meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = _address_space()
    limit = used + 2 * MAX_MEMORY_BYTES
    if not used or (soft != resource.RLIM_INFINITY and soft < limit):
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


class _Stop(BaseException):
    """Raised inside a thread that is to end."""


def _stoppable(function: Callable[[], Any], timeout_s: float) -> Any:
    """Call a function of Python code in a thread; stop it when its time is over or the process has grown too much."""
    outcome: list[Any] = []
    ended = threading.Event()

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(user_code_error(error))
        finally:
            ended.set()

    thread = threading.Thread(target=run, daemon=True, name="treegrpo-chat-template")
    end, before = time.monotonic() + timeout_s, _peak_bytes()
    thread.start()
    while not ended.wait(min(LOOK_S, timeout_s)):
        if time.monotonic() >= end:
            _stop(thread)
            raise UserError(f"chat template: does not end within {timeout_s:g} s (model.chat_template_timeout_s)")
        if _peak_bytes() - before > MAX_MEMORY_BYTES:
            _stop(thread)
            raise _too_much_memory()
    [result] = outcome
    if isinstance(result, UserCodeError):
        raise result
    return result


def _stop(thread: threading.Thread) -> None:
    """Raise `_Stop` in a thread before its next instruction of Python."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
