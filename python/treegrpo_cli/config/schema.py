"""Config -> a JSON schema of settings files, for editors: descriptions, defaults, choices and limits.

It knows our names alone: those of TRL and verl, which a settings file may have too, are marked as unknown. What two
settings must be beside each other, and values of estimators' options, are checked when the file is read.
"""

from __future__ import annotations

from typing import Any

from treegrpo_cli.config.catalogue import about, settings, tables
from treegrpo_cli.config.options import NAMING, Option, options, options_by_key

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCALAR = ["string", "number", "boolean"]
OWN = ":"
"""Stands in the name of a user's own function, whose options nobody knows."""


def json_schema() -> dict[str, Any]:
    """Return the schema, as draft 2020-12 has it."""
    sections: dict[str, Any] = {}
    for section, table in tables().items():
        full = table.model_json_schema()
        own = {name: _described(section, name, full["properties"][name]) for name in _names(section)}
        sections[section] = {"type": "object", "properties": own, "additionalProperties": False}
        if section:
            sections[section]["description"] = about(section)
    for section, naming in NAMING.items():
        sections[section] |= _with_options(section, naming, sections[section]["properties"])
    advantage = sections["advantage"]["properties"]
    advantage["terms"]["items"] = _term()
    top = sections.pop("")
    return {
        "$schema": DIALECT,
        "title": "treegrpo settings",
        "description": about(""),
        **top,
        "properties": top["properties"] | sections,
    }


def _names(section: str) -> list[str]:
    return [setting.name for setting in settings().values() if setting.section == section]


def _described(section: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    setting = settings()[f"{section}.{name}" if section else name]
    rest = {key: value for key, value in schema.items() if key not in ("title", "default")}
    return {"description": setting.meaning, "default": setting.default, **rest}


def _with_options(section: str, naming: str, known: dict[str, Any]) -> dict[str, Any]:
    """A table in which the options of the one that is named, and no others, stand beside its name."""
    beside = {each[0].name: _option(each) for key, each in options_by_key().items() if key.startswith(f"{section}.")}
    default = settings()[f"{section}.{naming}"].default
    rules = [
        {
            "if": {"properties": {naming: {"const": owner}}, **({} if owner == default else {"required": [naming]})},
            "then": {"propertyNames": {"enum": [*known, *names]}},
        }
        for owner, names in _owned(section).items()
    ]
    named = {**known[naming], "anyOf": [{"enum": _choices(section)}, {"pattern": OWN}]}
    return {"properties": beside | known | {naming: named}, "additionalProperties": True, "allOf": rules}


def _choices(section: str) -> list[str]:
    """Names of estimators or rules; an estimator is empty where there are terms."""
    return [*_owned(section), *([""] if section == "advantage" else [])]


def _owned(section: str) -> dict[str, list[str]]:
    """Estimator or rule -> the names of its options."""
    owned: dict[str, list[str]] = {}
    for option in options():
        if option.section == section:
            owned.setdefault(option.owner, []).append(option.name)
    return owned


def _option(same_name: list[Option]) -> dict[str, Any]:
    told = "; ".join(f"{option.owner}: {option.legal} (default {option.default})" for option in same_name)
    return {"type": SCALAR, "description": f"Option. {told}."}


def _term() -> dict[str, Any]:
    """One of `[[advantage.terms]]`: its own keys, and the options of its estimator beside them."""
    return {
        "type": "object",
        "required": ["estimator"],
        "properties": {
            "estimator": {"type": "string", "description": settings()["advantage.estimator"].meaning},
            "weight": {"type": "number", "exclusiveMinimum": 0, "default": 1},
            "mask": {"type": "string"},
            "options": {"type": "object"},
        },
        "additionalProperties": {"type": SCALAR},
    }
