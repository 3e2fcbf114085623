"""Signatures and docstrings of the public names, read from the source, not imported -> docs/reference/python.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import treegrpo_cli

SOURCES = Path(__file__).parents[2] / "python"
HEAD = """# Python

All of `treegrpo_cli`'s public names. Importing it loads neither torch nor vLLM; each name is loaded when it is first
used. In the signatures, `Fields` is a dictionary of JSON values by name, and `AnyTree` is a `TreeRecord`, or a
dictionary with the fields of [a line of a tree file](tree-file.md). The tests run the examples.
"""
SECTIONS = {
    "Reading and making trees": ("TreeRecord", "read_trees", "from_chains", "Trees"),
    "Advantages": ("score", "estimators", "Estimator", "Option"),
    "Training rows": ("training_rows", "TrainingRow", "collate", "preference_pairs"),
    "Errors and version": ("UserError", "__version__"),
}
HOMES = treegrpo_cli._HOMES | {"Estimator": "trees.estimators", "Option": "trees.estimators"}
OWN_CODE = """
## What your own environment and reward are given

These types cross the border between the trees and your code. [An environment](../how-to/own-environment.md) and
[a reward](../how-to/own-reward.md) of your own import those that they need.
"""
OWN = ("types.Task", "types.Action", "types.ToolCall", "types.StepResult", "types.Rollout", "envs.base.Environment")
OWN += ("envs.tool_schema.tool_schema", "errors.ToolError")


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_public(), OWN_CODE, *_of_own_code()]).rstrip() + "\n"


def _public() -> Iterator[str]:
    for title, names in SECTIONS.items():
        yield f"## {title}\n"
        for name in names:
            if name == "__version__":
                yield "### \\_\\_version\\_\\_\n\nThe version of the package, as text.\n"
            else:
                yield from _entry(HOMES[name], name, "treegrpo_cli")


def _of_own_code() -> Iterator[str]:
    for path in OWN:
        home, _, name = path.rpartition(".")
        shown = "treegrpo_cli.envs" if home.startswith("envs") else f"treegrpo_cli.{home}"
        yield from _entry(home, name, shown)


def _entry(home: str, name: str, shown: str) -> Iterator[str]:
    found = _module(home)[name]
    yield f"### {name}\n"
    if found.is_function:
        yield f"```py\n{_signature(found)}\n```\n"
    elif "TypedDict" in map(str, found.bases):
        yield "A dictionary.\n"
    elif "__init__" in found.members and not found.members["__init__"].is_alias:
        yield f"```py\n{_signature(found.members['__init__'], name)}\n```\n"
    yield from _text(found, f"from {shown} import {name}")
    if found.is_class:
        yield from _members(found)


def _members(found: Any) -> Iterator[str]:
    members = [*found.members.values(), *_inherited(found)]
    public = [m for m in members if not m.name.startswith("_") and not m.is_alias and m.has_docstring]
    fields = [m for m in found.members.values() if m.is_attribute and "property" not in m.labels and m.annotation]
    fields = [m for m in fields if not m.name.startswith("_")]
    if fields:
        yield "| field | type | meaning |"
        yield "|---|---|---|"
        for field in fields:
            value = "{}" if "default_factory" in str(field.value) else field.value
            default = f" Default: `{value}`." if value is not None else ""
            yield f"| `{field.name}` | `{_cell(str(field.annotation))}` | {_cell(_plain(field) + default)} |"
        yield ""
    for member in public:
        if member in fields:
            continue
        if member.is_attribute:
            yield f"- `.{member.name}`: `{member.annotation}`. {_one_line(_plain(member))}"
        else:
            yield f"- `.{_signature(member, width=1000)}`. {_one_line(_plain(member))}"
    yield ""


def _inherited(found: Any) -> Iterator[Any]:
    """What a class has from those of its bases that are the package's own and stand on no page."""
    for base in map(str, found.bases):
        aliased = found.parent.members.get(base)
        if aliased is not None and aliased.is_alias and aliased.target_path.startswith("treegrpo_cli.trees."):
            home, _, name = aliased.target_path.removeprefix("treegrpo_cli.").rpartition(".")
            if name not in HOMES:
                yield from _module(home)[name].members.values()


def _module(home: str) -> Any:
    path = (SOURCES / "treegrpo_cli" / home.replace(".", "/")).with_suffix(".py")
    return griffe.visit(f"treegrpo_cli.{home}", filepath=path, code=path.read_text(encoding="utf-8"))


def _signature(function: Any, name: str = "", width: int = 100) -> str:
    """A function's head as it is written; one parameter a line where it is long."""
    parts, seen_star = [], False
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind.value if parameter.kind else ""
        star = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        if kind == "keyword-only" and not seen_star:
            parts.append("*")
        seen_star = seen_star or kind in ("keyword-only", "variadic positional")
        annotation = f": {parameter.annotation}" if parameter.annotation else ""
        default = "" if star or parameter.default is None else f" = {parameter.default}"
        parts.append(f"{star}{parameter.name}{annotation}{default}")
    returns = f" -> {function.returns}" if function.returns and not name else ""
    whole = f"{name or function.name}({', '.join(parts)}){returns}"
    if len(whole) <= width:
        return whole
    return f"{name or function.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def _text(found: Any, imports: str) -> Iterator[str]:
    """A docstring as Markdown: its examples in fences, with the import that they need."""
    for paragraph in re.split(r"\n\s*\n", _plain(found)):
        if paragraph.lstrip().startswith(">>>"):
            formatted = paragraph.replace("'''", '"""')  # as ruff writes it in Markdown
            yield f"```pycon\n{_imports(paragraph, imports)}{formatted}\n\n```\n"
        elif paragraph.startswith("Raises:") and "\n" in paragraph:
            yield f"Raises {_one_line(paragraph.removeprefix('Raises:'))}\n"
        else:
            yield f"{paragraph}\n"


def _imports(example: str, imports: str) -> str:
    """What an example uses of the package and does not import itself."""
    imported = " ".join(re.findall(r"import (.*)", example))
    used = [
        name for name in treegrpo_cli._HOMES if re.search(rf"\b{name}\(", example) and name not in imported.split(", ")
    ]
    lines = [f"from treegrpo_cli import {', '.join(used)}"] if used else []
    if imports.rpartition(" ")[2] not in [*used, *treegrpo_cli._HOMES]:
        lines.append(imports)
    return "".join(f">>> {line}\n" for line in lines)


def _plain(found: Any) -> str:
    return found.docstring.value if found.has_docstring else ""


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")
