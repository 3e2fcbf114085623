"""Config -> every setting with its type, limits, default, meaning and other names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from treegrpo_cli.config import Config
from treegrpo_cli.config.foreign_names import foreign_names
from treegrpo_cli.config.kinds import kind_of
from treegrpo_cli.config.meanings import first_sentence, meanings, unwrapped

PAPER = {
    "rollout.num_trees": "M",
    "rollout.num_expansions": "N",
    "rollout.num_rounds": "L",
    "rollout.num_kept_leaves": "K",
    "loss.clip_low": "ε",
    "loss.kl_coef": "β",
}
"""Key -> its letter in the paper."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a settings file."""

    section: str
    """Empty at the top of the file."""
    name: str
    kind: str
    """Its type with its limits, in words."""
    default: Any
    meaning: str
    """Whole, a paragraph a line."""
    foreign_names: tuple[str, ...]
    """What TRL, verl and others call it."""

    @property
    def key(self) -> str:
        """As the command line has it."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def summary(self) -> str:
        """The first sentence of its meaning."""
        return first_sentence(self.meaning)

    @property
    def paper(self) -> str:
        """Its letter in the paper, or nothing."""
        return PAPER.get(self.key, "")


@cache
def settings() -> dict[str, Setting]:
    """Return every setting by its key, in the order of the file.

    >>> settings()["rollout.num_trees"].kind, settings()["rollout.num_trees"].default
    ('integer, 1 to 1000000', 2)
    """
    return {setting.key: setting for section, table in tables().items() for setting in _settings_of(section, table)}


@cache
def tables() -> dict[str, type[BaseModel]]:
    """Return every section's table by its name; the top of the file has none."""
    return {"": Config, **{name: table for name, field in Config.model_fields.items() if (table := _table(field))}}


def about(section: str) -> str:
    """What a section is for: the first line of its table's docstring."""
    return first_sentence(unwrapped(tables()[section].__doc__ or ""))


def related(setting: Setting) -> list[str]:
    """The keys that a setting's meaning names, and those whose meanings name it."""
    named = _named_in(setting)
    naming = [key for key, other in settings().items() if setting.key in _named_in(other)]
    return list(dict.fromkeys([*named, *naming]))


def as_toml(value: Any) -> str:
    """Write a value as a settings file has it, on one line.

    >>> as_toml(["exact_match"]), as_toml(1e-6), as_toml(True)
    ('["exact_match"]', '1e-06', 'true')
    """
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {as_toml(inside)}' for name, inside in value.items())} }}" if value else "{}"
    return json.dumps(value, ensure_ascii=False)


def _settings_of(section: str, table: type[BaseModel]) -> Iterator[Setting]:
    known, schema = meanings(table), table.model_json_schema()
    for name, field in table.model_fields.items():
        if _table(field) is None:
            key = f"{section}.{name}" if section else name
            kind, default = kind_of(schema["properties"][name]), field.get_default(call_default_factory=True)
            yield Setting(section, name, kind, default, known.get(name, ""), foreign_names(key))


def _table(field: FieldInfo) -> type[BaseModel] | None:
    inner = field.annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _named_in(setting: Setting) -> list[str]:
    """Keys that stand in its meaning as code: dotted, or of its own section."""
    words = re.findall(r"`([a-z_.]+)(?: = [^`]*)?`", setting.meaning)
    keys = [word if word in settings() else f"{setting.section}.{word}" for word in words]
    return [key for key in keys if key in settings() and key != setting.key]
