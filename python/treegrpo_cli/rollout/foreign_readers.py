"""Parsers of tool calls that vLLM and transformers keep -> readers: bounded in time, and silent in the log.

They come with a model or were written for a server, and the text is the policy's. A reader gets so many seconds,
counted by an alarm that also stops a regular expression; what it raises is a call that cannot be read.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from treegrpo_cli.rollout.own_readers import json_object
from treegrpo_cli.rollout.writing import Tools
from treegrpo_cli.samplers.vllm_engine import prepare_import
from treegrpo_cli.types import ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READ_S = 5.0
"""Seconds to read one turn; a turn takes milliseconds."""
MAX_CHARS = 1 << 20
USUAL_PARSERS = (
    "qwen3_coder", "glm45", "gemma4", "lfm2", "mistral", "kimi_k2", "deepseek_v31", "deepseek_v3", "deepseek_v32",
    "minimax_m2", "seed_oss", "granite", "hermes", "llama3_json", "llama4_pythonic", "pythonic",
)  # fmt: skip
"""Tried before the rest of vLLM's, so that of two that read the same the one is taken that is made for it."""


class _TooLong(BaseException):
    """Raised by the alarm; no parser catches it."""


def vllm_parsers() -> list[str]:
    """Return the names of vLLM's parsers, the usual ones first; none where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return []
    names = _manager().list_registered()
    return [*(name for name in USUAL_PARSERS if name in names), *sorted(set(names) - set(USUAL_PARSERS))]


def vllm_reader(
    name: str, tokenizer: PreTrainedTokenizerBase, tools: Tools
) -> Callable[[str], Sequence[ToolCall]] | None:
    """Return a reader by one of vLLM's parsers; None where that does not fit the tokenizer."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    words = _Words(tokenizer)
    try:
        request = ChatCompletionRequest(messages=[{"role": "user", "content": "question"}], tools=list(tools))
        make = functools.partial(_manager().get_tool_parser(name), words, request.tools)
        make()
    except Exception:  # for want of tokens, of a library, of a schema that it knows, of whatever it needs
        return None

    def read(text: str) -> Sequence[ToolCall]:
        spoken = text.rpartition("</think>")[2]
        found = _bounded(lambda: make().extract_tool_calls(spoken, request), text)
        calls = [(call.function.name, call.function.arguments, call.id or "") for call in found.tool_calls or ()]
        return [ToolCall(name, json_object(arguments), id_ if id_ in text else "") for name, arguments, id_ in calls]

    return read


def response_template_reader(
    tokenizer: PreTrainedTokenizerBase, tools: Tools, prompt: str
) -> Callable[[str], Sequence[ToolCall]]:
    """Return a reader by the tokenizer's own response template; `prompt` is one that a turn stands behind."""

    def read(text: str) -> Sequence[ToolCall]:
        if getattr(tokenizer, "response_template", None) is None:
            raise ValueError("the tokenizer has no response template")
        message = _bounded(lambda: tokenizer.parse_response(text, prefix=prompt, tools=list(tools)), text)
        return [_tool_call(call) for call in message.get("tool_calls") or ()]

    return read


def _tool_call(call: Any) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        arguments = json_object(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("it needs a name and arguments")
    return ToolCall(name, arguments)


class _Words:
    """A tokenizer that lists its vocabulary once: parsers ask for it whenever they are made."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.get_vocab = functools.cache(tokenizer.get_vocab)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@functools.cache
def _manager() -> Any:
    """Import vLLM's parsers, without the engine."""
    prepare_import()
    log = logging.getLogger("vllm")
    level = log.level
    log.setLevel(logging.ERROR)  # what it says of drivers and compilers belongs to the engine's start
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.tool_parsers import ToolParserManager
    finally:
        log.setLevel(level)
    for name in ("vllm.tool_parsers", "vllm.parser"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return ToolParserManager


def _bounded(parse: Callable[[], Any], text: str) -> Any:
    """Call a parser. Raises ValueError where it fails, or does not end in time."""
    if len(text) > MAX_CHARS:
        raise ValueError(f"the turn has more than {MAX_CHARS:,} characters")
    try:
        with _alarm(READ_S):
            return parse()
    except _TooLong:
        raise ValueError(f"it takes more than {READ_S:g} s to read") from None
    except Exception as error:  # a parser of someone else's may raise whatever it likes
        raise ValueError(f"its parser raised {type(error).__name__}") from error


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` in the body after so many seconds; only the main thread, where rollouts run, hears alarms.

    An alarm that somebody else has set rings when it would have, or right afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _TooLong

    others, started = signal.getitimer(signal.ITIMER_REAL)[0], time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        if others:
            signal.setitimer(signal.ITIMER_REAL, max(others - (time.monotonic() - started), 1e-3))
