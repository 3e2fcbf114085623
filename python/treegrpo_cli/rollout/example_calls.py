"""Tools -> calls of them as the chat template writes them, which a reader has to read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from treegrpo_cli.rollout.conversations import Conversations, Written
from treegrpo_cli.rollout.writing import Tools
from treegrpo_cli.tags import parameters_of_schema
from treegrpo_cli.types import ToolCall

VALUES: dict[str, Any] = {"integer": 2, "number": 1.5, "boolean": True, "object": {"a": "b"}, "null": None}
TEXT = "two words"


def example_calls(conversations: Conversations, tools: Tools) -> list[Written]:
    """Return a turn for each tool, and one of two calls; none where the template writes no calls, or not two."""
    calls = [ToolCall(tool["function"]["name"], example_arguments(tool)) for tool in tools]
    turns = [written for call in calls if (written := conversations.written([call]))]
    both = conversations.written([calls[0], calls[-1]])
    return [*turns, both] if both and turns and both.text not in {turn.text for turn in turns} else turns


def example_arguments(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value of its type for each parameter.

    >>> example_arguments({"function": {"parameters": {"properties": {"n": {"type": "integer"}, "q": {}}}}})
    {'n': 2, 'q': 'two words'}
    """
    return {name: _value(schema) for name, schema in parameters_of_schema(tool).items()}


def _value(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return TEXT
    if schema.get("enum"):
        return schema["enum"][0]
    kind = next(_types(schema), "string")
    return [_value(schema.get("items"))] if kind == "array" else VALUES.get(kind, TEXT)


def _types(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types that a value may have, null last."""
    given = schema.get("type", [])
    kinds = [given] if isinstance(given, str) else list(given)
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        kinds += _types(choice)
    yield from sorted(kinds, key="null".__eq__)
