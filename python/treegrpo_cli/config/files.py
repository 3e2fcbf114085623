"""Path + dotted overrides -> Config, and Config -> TOML: reading and writing of the settings.

Other people's names for settings are taken as they type them (`spellings.py`): at the top level of the file or the
command line for TRL's, under their own sections for verl's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from treegrpo_cli.config import Config
from treegrpo_cli.config.documents import read_document
from treegrpo_cli.config.loss_spellings import settle_delta
from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.config.spellings import in_our_words, is_foreign
from treegrpo_cli.config.values import MAX_DEPTH, check_values, flat
from treegrpo_cli.errors import UserError, nearest

COMMAND_LINE = "the command line"
"""In place of a file, where an argument is wrong."""


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML or YAML file, apply `section.key=value` overrides, and check every setting.

    Raises FileError for a file that cannot be read and UserError, naming the dotted key and the nearest
    valid name, for a setting that is wrong.
    """
    overrides = list(overrides)
    if path is None:
        return make_config(layered([], overrides), COMMAND_LINE, overrides)
    return make_config(layered([(str(path), read_document(path))], overrides), str(path), overrides)


def layered(documents: Iterable[tuple[str, Mapping[str, Any]]], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Lay (source, tree of settings) over each other, later ones over earlier ones, and overrides over all.

    Tables are laid over each other setting by setting, lists are replaced.
    """
    tree: dict[str, Any] = {}
    for source, document in documents:
        layer = _with_our_names(document, source)
        for key, _ in _settings(layer):
            _make_room(tree, key)
        _lay_over(tree, layer, source)
    pairs = [_parse_override(override) for override in overrides]
    for key, value in in_our_words(pairs, flat(tree)):
        _make_room(tree, key)
        _assign(tree, key, value)
    return tree


def _make_room(tree: dict[str, Any], key: str) -> None:
    """Take out what says the same as `key` in another way."""
    for other in {"delta", "loss.dual_clip"} - {key} if key in ("delta", "loss.dual_clip") else ():
        if any(there == other for there, _ in _settings(tree)):
            _remove(tree, other)


def _lay_over(tree: dict[str, Any], layer: Mapping[str, Any], source: str, prefix: str = "") -> None:
    for name, value in layer.items():
        below = tree.get(name)
        if isinstance(value, Mapping) and name in tree:
            if not isinstance(below, dict):
                raise UserError(f"{source}: {prefix}{name} is a table, and was none")
            _lay_over(below, value, source, f"{prefix}{name}.")
        else:
            tree[name] = value


def make_config(tree: Mapping[str, Any], source: str = "config", overrides: Iterable[str] = ()) -> Config:
    """Check a tree of settings in the shape of the file; what `overrides` set in it is no mistake of `source`."""
    tree = _with_our_names(tree, source)
    try:
        _count_chains(tree)
        settle_delta(tree)
        check_values(tree)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_first_problem(error, source, _arguments(overrides, tree), flat(tree))) from None


def dump_config(config: Config) -> str:
    """Return the resolved settings as TOML; reading it back gives the same config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _parse_override(override: str) -> tuple[str, Any]:
    """Split `a.b=1`: the value is read as TOML where it is TOML, else it is a string."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r:.200}: expected section.key=value")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        raise UserError(
            f"{key}: this value cannot be read: a number is too long, or lists are nested too deep"
        ) from None


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    if len(sections) >= MAX_DEPTH:
        raise UserError(f"{key}: nested deeper than {MAX_DEPTH}")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise UserError(f"{key}: {section!r} is not a table")
        tree = below
    tree[name] = value


def _with_our_names(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of the tree in which every setting has our name. Raises UserError where one has two values."""
    try:
        check_values(dict(given))
        tree: dict[str, Any] = _copied(given)
        foreign = [pair for pair in _settings(tree) if is_foreign(pair[0])]
        for key, _ in foreign:
            _remove(tree, key)
        for key, value in in_our_words(foreign, flat(tree)):
            known = _settings(tree)
            if any(key == other and value != there for other, there in known):
                raise UserError(f"{key}: given twice, once under another name")
            _assign(tree, key, value)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return tree


def _copied(value: Any) -> Any:
    """A copy in which no table is another one too, as an alias of YAML is."""
    if isinstance(value, Mapping):
        return {name: _copied(inside) for name, inside in value.items()}
    return [_copied(inside) for inside in value] if isinstance(value, list) else value


def _settings(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no table, and of tables that somebody else's name stands for."""
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{key}.")
        else:
            yield key, value


def _remove(tree: dict[str, Any], key: str) -> None:
    """Take a setting out, and the tables that are empty without it."""
    section, dot, rest = key.partition(".")
    if dot:
        _remove(tree[section], rest)
    if not dot or not tree[section]:
        del tree[section]


def _count_chains(tree: dict[str, Any]) -> None:
    """`num_generations` is the number of trees where every tree is a chain."""
    if "num_generations" not in tree:
        return
    rollout = tree.get("rollout")
    if not isinstance(rollout, dict) or rollout.get("num_rounds") != 0:
        raise UserError(
            "num_generations counts chains; to train on chains, set rollout.num_rounds = 0, "
            "else describe the trees by rollout.num_trees, num_expansions, num_rounds and num_kept_leaves"
        )
    _assign(tree, "rollout.num_trees", tree.pop("num_generations"))


def _arguments(overrides: Iterable[str], tree: dict[str, Any]) -> set[str]:
    """Dotted keys, under our names, of what the command line sets."""
    return set(flat(dict(in_our_words(map(_parse_override, overrides), flat(tree)))))


def _first_problem(error: ValidationError, source: str, arguments: set[str], settings: Mapping[str, Any]) -> str:
    """The line on a problem. It names the command line where all settings that it is about are `arguments`."""
    problems = error.errors(include_url=False)
    problem, location = problems[0], _location(problems[0]["loc"])
    dotted = ".".join(location) or "config"
    about = [key for key in settings if f"{key}.".startswith(f"{dotted}.") or dotted.startswith(f"{key}.")]
    if about and arguments.issuperset(about):
        source = COMMAND_LINE
    if problem["type"] == "extra_forbidden":
        name = about[0] if source == COMMAND_LINE and about else dotted
        return f"{source}: unknown key {name!r}, {_nearest_key(location)}"
    messages = [other["msg"].removeprefix("Value error, ") for other in problems if _location(other["loc"]) == location]
    message = " or ".join([messages[0], *(other.removeprefix("Input should be ") for other in messages[1:])])
    shown = "" if isinstance(problem["input"], dict | BaseModel) else f", got {without_passwords(problem['input'])!r}"
    return f"{source}: {dotted}: {message[0].lower()}{message[1:]}{shown}"


def _location(parts: Iterable[int | str]) -> list[str]:
    """The keys of a problem and its place in a list, without the names that pydantic gives to the types of a union."""
    location: list[str] = []
    table: Any = Config
    for part in parts:
        is_table = isinstance(table, type) and issubclass(table, BaseModel)
        if is_table or isinstance(part, int):
            location.append(str(part))
        field = table.model_fields.get(str(part)) if is_table else None
        table = field.annotation if field else None
    return location


def _nearest_key(location: list[str]) -> str:
    """Name the nearest valid key: in the same table, or anywhere, since people forget the section."""
    table: type[BaseModel] = Config
    for part in location[:-1]:
        inner = table.model_fields[part].annotation
        if not isinstance(inner, type) or not issubclass(inner, BaseModel):
            break
        table = inner
    name = location[-1]
    homes = [f"{section}.{name}" for section, fields in _tables().items() if name in fields]
    if homes and table is Config:
        return f"did you mean {homes[0]!r}?"
    return nearest(name, table.model_fields)


def _tables() -> dict[str, Iterable[str]]:
    return {
        section: field.annotation.model_fields
        for section, field in Config.model_fields.items()
        if isinstance(field.annotation, type)
        and not get_args(field.annotation)
        and issubclass(field.annotation, BaseModel)
    }
