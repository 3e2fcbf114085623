"""JSON schema of a setting -> its type and limits in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from treegrpo_cli.config.sections.base import MAX_INTEGER

PLURALS = {"string": "strings", "number": "numbers", "integer": "integers", "object": "tables"}


def kind_of(schema: Mapping[str, Any]) -> str:
    """Say what a value may be.

    >>> kind_of({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
    'number, above 0, at most 1'
    >>> kind_of({"anyOf": [{"const": "auto"}, {"type": "boolean"}]})
    'auto or boolean'
    """
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind_of, schema["anyOf"])))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return schema["const"] if isinstance(schema["const"], str) else json.dumps(schema["const"])
    if schema["type"] == "array":
        return f"list of {_plural(schema['items'])}{_between(schema, 'Items', ' entries')}"
    name = {"object": "table"}.get(schema["type"], schema["type"])
    return f"{name}{_between(schema)}{', not empty' if schema.get('minLength') else ''}"


def _plural(items: Mapping[str, Any]) -> str:
    return " | ".join(items["enum"]) if "enum" in items else PLURALS[items["type"]]


def _between(schema: Mapping[str, Any], suffix: str = "imum", unit: str = "") -> str:
    """Both limits in words; the largest integer that a file can hold is none."""
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    high = None if high == MAX_INTEGER else high
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}{unit}"
    parts = [
        f"above {_number(above)}" if above is not None else "",
        f"{_number(low)} or more{unit}" if low is not None else "",
        f"below {_number(below)}" if below is not None else "",
        f"at most {_number(high)}{unit}" if high is not None else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
