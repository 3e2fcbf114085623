"""A model's folder -> ValueError where its files would run code, lead elsewhere, or ask for memory that nothing fills.

A folder may come from anybody. Its text files have limits on their bytes, its configuration on what it may ask to be
built, and a model is built only where the weights on disk can fill it.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"

MAX_CONFIG_BYTES = 4 << 20
"""Of a configuration; those of the largest models have some ten thousand."""

MAX_TEXT_BYTES = 128 << 20
"""Of any other text file; the largest tokenizers have 35 million."""

TEXTS = re.compile(
    r"(generation_|tokenizer_|processor_|preprocessor_)?config\.json|(tokenizer|vocab|tekken|chat_template)\.json"
    r"|(added_tokens|special_tokens_map|model\.safetensors\.index)\.json|(vocab|merges)\.txt|.*\.(jinja|model|tiktoken)"
)
"""What transformers reads of a folder beside weights."""

MAX_PARTS = 1000
"""Layers, experts, labels that a configuration may ask for, or as many as there are tensors of weights."""

PARTS = re.compile(r"layers|experts|labels|attention_types")

WEIGHTS_PER_BYTE = 2
"""Weights of a model for each byte of its files, at most: four bits take half a byte."""


def check_files(folder: Path) -> None:
    """Check what transformers reads before it reads weights. Raises ValueError, which names the file."""
    for path in sorted(folder.iterdir()):
        if TEXTS.fullmatch(path.name) and path.exists():
            _check_bytes(path)
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            "adapter_config.json: this folder holds an adapter, not a model; merge it into its model first"
        )
    if not (folder / CONFIG).is_file():
        return
    config = read_json(folder / CONFIG)
    if config.get("transformers_weights", WEIGHTS) not in (WEIGHTS, INDEX):
        raise ValueError(f"{CONFIG}: transformers_weights is not {WEIGHTS}")
    limit = max(MAX_PARTS, sum(1 for _ in _stored(folder)))
    for key, number in _numbers(config):
        if PARTS.search(key) and number > limit:
            raise ValueError(f"{CONFIG}: {key:.60} = {number:,} is more than {limit:,}")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors that hold the model. Raises ValueError where the index names anything else."""
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise ValueError(f"{INDEX}: weight_map is no table of files")
        for name in sorted(set(named.values())):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{INDEX}: {name[:80]!r} is no *.safetensors of this folder")
            if not (folder / name).is_file():
                raise ValueError(f"{INDEX}: {name[:80]!r} is missing")
        if not (folder / WEIGHTS).is_file():
            return [folder / name for name in sorted(set(named.values()))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def check_sizes(folder: Path, model: Any) -> None:
    """Check that the weights on disk can fill a model that was built on torch's meta device."""
    wanted = {name: weight.numel() for name, weight in model.named_parameters()}
    num_bytes = sum(file.stat().st_size for file in weight_files(folder))
    if sum(wanted.values()) > WEIGHTS_PER_BYTE * num_bytes:
        raise ValueError(
            f"{CONFIG} asks for {sum(wanted.values()):,} weights, and its safetensors have {num_bytes:,} bytes"
        )
    for name, shape, dtype in _stored(folder):
        if dtype in ("F64", "F32", "F16", "BF16") and math.prod(shape) != wanted.get(name, math.prod(shape)):
            asked = list(model.get_parameter(name).shape)
            raise ValueError(f"{CONFIG} asks for {name} of shape {asked}, and its safetensors have {shape}")


def wants_code(folder: Path, tokenizer: bool) -> bool:
    """Whether a model that the library does not know, or its tokenizer, names code in the folder that was to be run."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    file = folder / ("tokenizer_config.json" if tokenizer else CONFIG)
    try:
        config = read_json(file) if file.is_file() else {}
    except ValueError:
        return False
    return "auto_map" in config and (tokenizer or config.get("model_type") not in CONFIG_MAPPING_NAMES)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON table of bounded size. Raises ValueError, which names the file."""
    _check_bytes(path)
    try:
        table = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path.name} is not a valid JSON file: {reason}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path.name}: no table")
    return table


def _check_bytes(path: Path) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        if path.is_dir():
            return
        raise ValueError(f"{path.name}: no regular file")
    limit = MAX_CONFIG_BYTES if path.name in (CONFIG, "generation_config.json") else MAX_TEXT_BYTES
    if found.st_size > limit:
        raise ValueError(f"{path.name}: {found.st_size:,} bytes are more than {limit:,}")


def _stored(folder: Path) -> Iterator[tuple[str, list[int], str]]:
    """Yield name, shape and dtype of each tensor, from the files' headers."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as stored:
            for name in stored.keys():  # noqa: SIM118 - no mapping
                part = stored.get_slice(name)
                yield name, list(part.get_shape()), part.get_dtype()


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield every whole number of a configuration with the key under which it lies."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        elif isinstance(value, int):
            yield key, value
