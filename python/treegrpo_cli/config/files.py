"""Path + dotted overrides -> Config, and Config -> TOML: reading and writing of the settings.

Where an option is the same thing as one of TRL's, TRL's spelling is accepted at the top level of the
file or on the command line (`TRL_NAMES`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import tomli_w
import yaml
from pydantic import BaseModel, ValidationError

from treegrpo_cli.config import Config
from treegrpo_cli.errors import FileError, UserError, nearest

TRL_NAMES = {
    "beta": "loss.kl_coef",
    "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high",
    "delta": "loss.dual_clip",
    "importance_sampling_level": "loss.ratio",
    "num_iterations": "train.num_epochs",
    "max_steps": "train.num_steps",
    "eval_steps": "train.eval_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.max_checkpoints",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "warmup_steps": "optimizer.warmup_steps",
    "warmup_ratio": "optimizer.warmup_ratio",
    "lr_scheduler_type": "optimizer.schedule",
    "log_completions": "train.log_completions",
    "max_grad_norm": "optimizer.max_grad_norm",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "max_prompt_length": "rollout.max_prompt_tokens",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "model_name_or_path": "model.path",
    "reward_weights": "reward.weights",
    "vllm_gpu_memory_utilization": "sampler.gpu_memory_utilization",
}
"""TRL's spelling -> ours. `num_generations` is `rollout.num_trees` where `rollout.num_rounds` is 0."""


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML or YAML file, apply `section.key=value` overrides, and check every setting.

    Raises FileError for a file that cannot be read and UserError, naming the dotted key and the nearest
    valid name, for a setting that is wrong.
    """
    tree = _read(path) if path is not None else {}
    for override in overrides:
        key, value = _parse_override(override)
        _assign(tree, key, value)
    return make_config(tree, source="the command line" if path is None else str(path))


def make_config(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Check a tree of settings in the shape of the file."""
    try:
        return Config.model_validate(_with_our_names(dict(tree), source))
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error)}") from None


def dump_config(config: Config) -> str:
    """Return the resolved settings as TOML; reading it back gives the same config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise FileError(path, "not a text file") from None
    except tomllib.TOMLDecodeError as error:
        raise FileError(path, f"not TOML: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise FileError(path, f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise FileError(path, f"expected a table of settings, got {type(tree).__name__}")
    return tree


def _parse_override(override: str) -> tuple[str, Any]:
    """Split `a.b=1`: the value is read as TOML where it is TOML, else it is a string."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: expected section.key=value")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise UserError(f"{key}: {section!r} is not a table")
        tree = below
    tree[name] = value


def _with_our_names(tree: dict[str, Any], source: str) -> dict[str, Any]:
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    if "epsilon" in tree and "epsilon_high" not in tree:
        tree["epsilon_high"] = tree["epsilon"]
    if "num_generations" in tree:
        rounds = tree.get("rollout", {}).get("num_rounds")
        if rounds != 0:
            raise UserError(
                f"{source}: num_generations is rollout.num_trees of chains; set rollout.num_rounds = 0, "
                "or give rollout.num_trees, num_expansions, num_rounds and num_kept_leaves"
            )
        _assign(tree, "rollout.num_trees", tree.pop("num_generations"))
    for name in [name for name in tree if name in TRL_NAMES]:
        _assign(tree, TRL_NAMES[name], tree.pop(name))
    return tree


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}, {_nearest_key(location)}"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
    return f"{dotted}: {message[0].lower()}{message[1:]}{shown}"


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
