"""Sampled text -> tool calls, in the formats that are read without vLLM."""

from __future__ import annotations

import re
from typing import Any

import orjson

from treegrpo_cli.types import ToolCall


def read_json(text: str) -> list[ToolCall]:
    """Read `<tool_call>{json}</tool_call>`, JSON in a fence, and a turn that is JSON: one call or a list of them.

    >>> read_json('[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "abc"}]')
    [ToolCall(name='f', arguments={'x': 1}, id='abc')]
    """
    spoken = text.rpartition("</think>")[2]
    return [call for written in _written_calls(spoken) for call in _calls(written)]


def read_harmony(text: str) -> list[ToolCall]:
    """Read messages to `functions.NAME`, as gpt-oss writes them.

    >>> read_harmony("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}")
    [ToolCall(name='f', arguments={}, id='')]
    """
    calls = []
    for written in text.split("<|start|>"):
        header, is_message, content = written.partition("<|message|>")
        if recipient := re.search(r"to=functions\.([^\s<]+)", header):
            if not is_message:
                raise ValueError("a message to a function has no content")
            calls.append(ToolCall(recipient[1], json_object(re.split(r"<\|(?:end|call|return)\|>", content)[0])))
    return calls


def json_object(text: str) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError where the text is none."""
    value = _json(text)
    if not isinstance(value, dict):
        raise ValueError("a JSON object is expected")
    return value


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from error


def _written_calls(text: str) -> list[str]:
    """Return the JSON texts of a turn's calls."""
    if "<tool_call>" in text:
        parts = text.split("<tool_call>")[1:]
        if not all("</tool_call>" in part for part in parts):
            raise ValueError("<tool_call> is not closed")
        return [_unfenced(part.partition("</tool_call>")[0]) for part in parts]
    bare = re.sub(r"^(<\|python_tag\|>|\[TOOL_CALLS\])\s*", "", text.strip())
    if bare.startswith("{"):
        return [bare] if '"name"' in bare else []
    if bare.startswith("["):
        return [bare] if _looks_like_a_call(bare) else []
    return [fenced for fenced in _fences(text) if _looks_like_a_call(fenced)]


def _unfenced(text: str) -> str:
    return next(iter(_fences(text)), text)


def _fences(text: str) -> list[str]:
    """Return what stands in fences of JSON, or of no language; an open one reaches to the end."""
    inner = text.split("```")[1::2]
    return [json for fenced in inner if (json := fenced.removeprefix("json").strip()).startswith(("{", "["))]


def _looks_like_a_call(text: str) -> bool:
    return '"name"' in text and ('"arguments"' in text or '"parameters"' in text)


def _calls(text: str) -> list[ToolCall]:
    value = _json(text)
    return [_call(entry) for entry in (value if isinstance(value, list) and value else [value])]


def _call(call: Any) -> ToolCall:
    if not isinstance(call, dict):
        raise ValueError("a JSON object is expected")
    name, arguments, id_ = call.get("name"), call.get("arguments", call.get("parameters", {})), call.get("id")
    if isinstance(arguments, str):
        arguments = json_object(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("it needs a `name` and `arguments`, an object")
    return ToolCall(name, arguments, id_ if isinstance(id_, str) else "")
