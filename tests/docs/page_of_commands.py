"""The command line's own help -> docs/reference/commands.md."""

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from treegrpo_cli.cli.app import EXIT_CODES, app

HEAD = """# Commands

`treegrpo COMMAND --help` says the same in the terminal. `treegrpo --version` prints the version, `treegrpo --debug
COMMAND` shows whole tracebacks, and `treegrpo --install-completion` lets the shell complete commands and settings.

Where a command takes settings, it takes a TOML or YAML file, and then `section.key=value` pairs that win over it.
[Settings](settings.md) lists them.
"""
EXAMPLES = {
    "compare": """treegrpo compare chains.toml trees.toml --budget-tokens 200000 --seeds 3
treegrpo compare chains.toml trees.toml --probe""",
    "config": """treegrpo config rollout                                # a section
treegrpo config rollout.num_trees                      # a key, explained
treegrpo config --schema > settings.schema.json        # for an editor""",
    "init": """treegrpo init search my-task""",
    "plot": """treegrpo plot runs/mine --show
treegrpo plot runs/chains runs/trees --output plots""",
    "watch": """treegrpo watch runs/mine""",
    "doctor": """treegrpo doctor                                        # this machine
treegrpo doctor settings.toml --report doctor.json     # and these settings""",
    "estimators": """treegrpo estimators
treegrpo estimators parent""",
    "eval": """treegrpo eval runs/mine --data questions.jsonl                         # the newest checkpoint of a run
treegrpo eval model settings.toml --data questions.jsonl --n 4          # a model, four samples a question""",
    "inspect-tree": """treegrpo inspect-tree trees.jsonl --limit 1
treegrpo inspect-tree runs/mine --step 1 --summary
treegrpo inspect-tree trees.jsonl --prompt-id 00000000 --tree-id 0 --explain 1
treegrpo inspect-tree trees.jsonl --estimator parent --option scale=std --format json
treegrpo inspect-tree trees.jsonl --estimator grpo --estimator "0.5*parent,roots=tree" """.rstrip(),
    "rules": """treegrpo rules
treegrpo rules contrast""",
    "rollout": """treegrpo rollout settings.toml --output trees.jsonl
treegrpo rollout settings.toml --output trees.jsonl --resume
treegrpo rollout settings.toml rollout.num_trees=4 --dry-run""",
    "train": """treegrpo train settings.toml
treegrpo train settings.toml --dry-run                 # check all of it, and count the memory
treegrpo train --resume runs/mine                      # continue after a kill or Ctrl-C""",
}


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_sections(), *_exit_codes()]).rstrip() + "\n"


def commands() -> dict[str, Any]:
    """Return the commands by name, in the order of their names, as click has them."""
    group: Any = typer.main.get_command(app)
    return {name: group.commands[name] for name in sorted(group.commands)}


def _sections() -> Iterator[str]:
    yield "| command | |"
    yield "|---|---|"
    for name, command in commands().items():
        yield f"| [`{name}`](#{name}) | {_cell(_paragraphs(command)[0])} |"
    yield ""
    for name, command in commands().items():
        yield f"## {name}\n"
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        options = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
        yield f"```text\ntreegrpo {name} [OPTIONS]{''.join(f' {_shown(argument)}' for argument in arguments)}\n```\n"
        yield from (f"{paragraph}\n" for paragraph in _paragraphs(command))
        if name in EXAMPLES:
            yield f"```sh\n{EXAMPLES[name]}\n```\n"
        types = get_type_hints(command.callback)
        yield from _table("argument", [(_shown(argument), argument) for argument in arguments])
        yield from _table("option", [(_spelt(option, types[option.name]), option) for option in options])


def _table(kind: str, params: list[tuple[str, Any]]) -> Iterator[str]:
    if not params:
        return
    yield f"| {kind} | meaning | default |"
    yield "|---|---|---|"
    for name, param in params:
        text, default = _help(param)
        yield f"| `{_cell(name)}` | {_cell(text)} | {_cell(default)} |"
    yield ""


def _shown(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs == -1 else "")


def _spelt(option: Any, kind: Any) -> str:
    """An option as it is typed, with what follows it."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    given = _plain(kind)
    if option.metavar:
        value = option.metavar
    elif issubclass(given, Enum):
        value = "|".join(member.value for member in given)
    else:
        value = {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(given, "TEXT")
    return f"{names} {value}"


def _plain(kind: Any) -> Any:
    """The type of one value: of `list[str] | None` str."""
    inner = [part for part in get_args(kind) if part is not type(None)]
    return _plain(inner[0]) if inner else kind


def _help(param: Any) -> tuple[str, str]:
    """Split a help text and its default, which stands in brackets where the default is found at run time."""
    text, _, told = (param.help or "").partition("[default")
    if told:
        return text.strip(), told.strip(": ").removesuffix("]").strip()
    default = param.default
    if default is None or default is False or default == "" or param.required or callable(default):
        return text.strip(), ""
    return text.strip(), f"`{getattr(default, 'value', default)}`"


def _paragraphs(command: Any) -> list[str]:
    return [re.sub(r"\s+", " ", paragraph).strip() for paragraph in command.help.split("\n\n")]


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield f"```text\n{EXIT_CODES.partition(chr(8))[2].strip(chr(10))}\n```"
