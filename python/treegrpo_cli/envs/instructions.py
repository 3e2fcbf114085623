"""Prompt + tools -> the prompt with instructions: written from the tools, unless the row brings its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from treegrpo_cli.tags import inline_usage
from treegrpo_cli.types import Message


def with_instructions(messages: Sequence[Message], instructions: str) -> list[Message]:
    """Put `instructions` before the first user message."""
    if not instructions:
        return [dict(message) for message in messages]
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    return [
        {**message, "content": f"{instructions}\n\n{message['content']}"} if i == first else dict(message)
        for i, message in enumerate(messages)
    ]


def instructs(messages: Sequence[Message], tools: Sequence[dict[str, Any]], dialect: str) -> bool:
    """Whether a row's own messages say how to use every one of the tools, and how to answer.

    >>> search = {"function": {"name": "search"}}
    >>> instructs([{"content": "Use <search>words</search>, then <answer>it</answer>."}], [search], "inline")
    True
    >>> instructs([{"content": "Write <answer>it</answer>."}], [search], "inline")
    False
    """
    text = "\n".join(message["content"] for message in messages)
    names = [tool["function"]["name"] for tool in tools]
    if dialect == "inline":
        return all(f"<{name}>" in text for name in [*names, "answer"])
    return "<answer>" in text and all(re.search(rf"\b{re.escape(name)}\b", text) for name in names)


def instructions_for(tools: Sequence[dict[str, Any]], dialect: str) -> str:
    """Return instructions that name the tools; the chat dialect's templates show the tools themselves."""
    lines = ["Answer the question. Reason between <think> and </think> before every step."]
    if dialect == "inline":
        lines += ["You may use these tools, one at a time:"]
        lines += [f"- {inline_usage(tool)}: {tool['function'].get('description', '')}" for tool in tools]
        lines += ["A tool's result comes back between <information> and </information>."]
    lines += ["When you know the answer, give it between <answer> and </answer>, without explanation."]
    return "\n".join(lines)


def allowed_actions(tools: Sequence[dict[str, Any]], dialect: str) -> str:
    """Return what to tell a policy whose turn is no action."""
    usages = [inline_usage(t) if dialect == "inline" else f"call the tool {t['function']['name']}" for t in tools]
    allowed = ", ".join(usages)
    return f"This is not an action. Allowed: {allowed}, or <answer>your answer</answer> to finish. Try again."
