"""Annotated Python function -> JSON schema and checked arguments: of tools, and of environments' options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import (
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from treegrpo_cli.errors import UserError, nearest


class ArgumentError(ValueError):
    """Arguments that do not fit; `name` is the one at fault."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument that a function takes by name."""

    adapter: TypeAdapter[Any]
    required: bool


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the named parameters of a function or class (`self` is bound and not among them).

    Raises:
        UserError: an annotation that cannot be resolved.
    """
    annotated = function.__init__ if inspect.isclass(function) else function
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError) as error:
        raise UserError(f"{function.__name__}: cannot resolve its annotations: {error}") from error
    return {
        name: Parameter(_adapter(hints.get(name, Any)), parameter.default is parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError:  # a class of the user's own: an instance check
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def check_arguments(parameters: Mapping[str, Parameter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `arguments` converted to the annotated types.

    Raises:
        ArgumentError: a name that is unknown or missing, or a value of a wrong type.
    """
    for name in arguments:
        if name not in parameters:
            raise ArgumentError(name, f"unknown; {nearest(name, parameters)}")
    for name, parameter in parameters.items():
        if parameter.required and name not in arguments:
            raise ArgumentError(name, "missing")
    return {name: _convert(name, parameters[name], value) for name, value in arguments.items()}


def _convert(name: str, parameter: Parameter, value: Any) -> Any:
    try:
        return parameter.adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{part!r}]" for part in first["loc"])
        raise ArgumentError(f"{name}{place}", f"{first['msg']}, got {value!r:.100}") from error


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a function offered as a tool, in the form that chat templates take.

    The description is the docstring's first paragraph; the parameters' are the lines of its `Args:`.

    >>> def add(a: int, b: int = 0) -> int:
    ...     '''Add two numbers.
    ...
    ...     Args:
    ...         a: The first one.
    ...     '''
    ...     return a + b
    >>> tool_schema(add)["function"]["parameters"]["properties"]
    {'a': {'type': 'integer', 'description': 'The first one.'}, 'b': {'type': 'integer'}}

    Raises:
        UserError: a parameter without annotation, or of a type that JSON has no schema for.
    """
    description, of_parameter = _read_docstring(inspect.getdoc(function) or "")
    parameters = parameters_of(function)
    properties = {name: _property(function, name, p, of_parameter.get(name)) for name, p in parameters.items()}
    required = [name for name, parameter in parameters.items() if parameter.required]
    schema = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": function.__name__, "description": description, "parameters": schema},
    }


def _property(function: Callable[..., Any], name: str, parameter: Parameter, description: str | None) -> dict[str, Any]:
    if inspect.signature(function).parameters[name].annotation is inspect.Parameter.empty:
        raise UserError(f"tool {function.__name__}: parameter {name!r} has no annotation")
    try:
        schema = parameter.adapter.json_schema()
    except PydanticUserError as error:
        raise UserError(f"tool {function.__name__}: parameter {name!r} has a type without a JSON schema") from error
    return {**schema, "description": description} if description else schema


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the first paragraph, and the descriptions under `Args:`, which may go on over lines."""
    summary = " ".join(text.split("\n\n")[0].split())
    block = re.search(r"^(?:Args|Arguments|Parameters):[ ]*\n((?:[ \t]+.*(?:\n|$)|[ \t]*\n)*)", text, re.MULTILINE)
    of_parameter: dict[str, str] = {}
    name = ""
    for line in (block.group(1) if block else "").splitlines():
        start = re.match(r"\s+(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if start:
            name = start.group(1)
            of_parameter[name] = start.group(2).strip()
        elif name:
            of_parameter[name] = f"{of_parameter[name]} {line.strip()}".strip()
    return summary, of_parameter
