"""Policy -> the files of a model that transformers and vLLM load, layer by layer.

The library computes some models with other tensors than it stores (experts in one piece): each layer's are turned
back by the library itself, so that never more than one layer is there twice.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
from torch import Tensor

from treegrpo_cli.models.folder import INDEX, WEIGHTS
from treegrpo_cli.train.tensor_files import write_files

if TYPE_CHECKING:
    from treegrpo_cli.train.policy import Policy
    from treegrpo_cli.train.ranks import Ranks

LAYER = re.compile(r".*?\.\d+\.")
"""What the names of one layer's tensors begin with."""


def write_model(folder: Path, policy: Policy, ranks: Ranks) -> None:
    """Write the weights: float32 as trained, with LoRA merged and in the policy's dtype."""
    dtype = _stored_dtype(policy)
    weights, tied = policy.weights(dtype), tied_names(policy.model)
    shapes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in weights.shapes.items()}
    announced = stored(policy.model, ((name, tensor) for name, tensor in shapes.items() if name not in tied))
    num_bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in announced}
    tensors = stored(policy.model, ((name, tensor) for name, tensor in weights if name not in tied))
    where = write_files(folder, WEIGHTS, num_bytes, tensors, ranks)
    if ranks.rank == 0 and len(set(where.values())) > 1:
        index = {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": where}
        (folder / INDEX).write_bytes(orjson.dumps(index, option=orjson.OPT_INDENT_2))


def stored(model: Any, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Turn a model's tensors into those that it is stored as, under their names."""
    from transformers.core_model_loading import revert_weight_conversion

    for _, layer in groupby(tensors, key=lambda item: _layer_of(item[0])):
        yield from revert_weight_conversion(model, dict(layer)).items()


def tied_names(model: Any) -> set[str]:
    """The names under which a tensor is there once more."""
    everyone = {_plain(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    return everyone - {_plain(name) for name, _ in model.named_parameters()}


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _layer_of(name: str) -> str:
    found = LAYER.match(name)
    return found[0] if found else name


def _stored_dtype(policy: Policy) -> torch.dtype:
    return policy.dtype if policy.uses_lora else torch.float32


def write_settings(folder: Path, policy: Policy) -> None:
    """Write the configuration of what `write_model` writes, which gathers: it is one rank's work, and may fail."""
    model = policy.model
    config = copy.deepcopy(model.config)
    config.dtype = str(_stored_dtype(policy)).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # sharding renames the class
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
