"""The tags of the inline way of writing turns, which prompts, environments, rewards and dialects share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

RESERVED_TAGS = ("think", "information", "answer")


def last_answer(text: str) -> str | None:
    """Return what stands in the last `<answer>…</answer>`, stripped; None where there is none.

    >>> last_answer("<answer>Rome</answer> no: <answer> Paris </answer>")
    'Paris'
    """
    answers = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", text, re.DOTALL)
    return answers[-1].strip() if answers else None


def inline_usage(tool: Mapping[str, Any]) -> str:
    """Return how a tool is called inline: `<search>query</search>`; several arguments are a JSON object."""
    name, parameters = tool["function"]["name"], list(parameters_of_schema(tool))
    inner = parameters[0] if len(parameters) == 1 else "{" + ", ".join(f'"{p}": …' for p in parameters) + "}"
    return f"<{name}>{inner}</{name}>"


def parameters_of_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schemas of a tool's parameters by name."""
    properties: dict[str, Any] = tool["function"].get("parameters", {}).get("properties", {})
    return properties
