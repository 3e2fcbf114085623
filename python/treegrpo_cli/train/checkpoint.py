"""Trainer <-> `checkpoint-N/`: a model that transformers loads, and what an exact resume needs beside it.

    config.json, *.safetensors, tokenizer   the model: float32 as trained; with LoRA merged, in model.dtype
    adapter/                                with LoRA: the adapter, as peft loads it
    training_state.tensors                  Adam's moments, the random state
    training_state.json                     the step, and the loop's own state (data position and the like)

A checkpoint is written under another name and renamed when it is whole and on disk, so that a kill or
a full disk leaves the earlier ones as they were. Nothing is pickled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from treegrpo_cli.errors import FileError
from treegrpo_cli.models.pretrained import load_tokenizer
from treegrpo_cli.train.policy import load_model
from treegrpo_cli.train.self_check import Disagreement
from treegrpo_cli.train.trainer import Trainer

STATE_JSON, STATE_TENSORS, ADAPTER = "training_state.json", "training_state.tensors", "adapter"
# The tensors are safetensors, but vLLM takes every file of that ending for weights of the model.
CPU_RNG, CUDA_RNG = "rng.cpu", "rng.cuda"


def save_checkpoint(output_dir: str | Path, trainer: Trainer, state: dict[str, Any]) -> Path:
    """Write `output_dir/checkpoint-N`, N = `trainer.step`; return its path.

    `state` is the loop's own: any JSON; `load_checkpoint` returns it. Raises FileError where the disk
    does not take it; earlier checkpoints are untouched then.
    """
    path = Path(output_dir) / f"checkpoint-{trainer.step}"
    partial = path.with_name(f".{path.name}.partial")
    try:
        _remove_leftovers(path.parent)
        partial.mkdir(parents=True)
        _write_model(partial, trainer)
        _write_training_state(partial, trainer, state)
        _sync(partial)
        _replace(partial, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise FileError(path, f"{_reason(error)}; earlier checkpoints are whole") from None
    return path


def load_checkpoint(path: str | Path, trainer: Trainer) -> dict[str, Any]:
    """Put weights, optimizer, random state and step of a checkpoint into `trainer`; return the loop's state.

    Raises FileError for a folder that is no whole checkpoint, or not one of this trainer's model.
    """
    path = Path(path)
    try:
        saved = orjson.loads((path / STATE_JSON).read_bytes())
        tensors = load_file(path / STATE_TENSORS)
        step, state = int(saved["step"]), dict(saved["state"])
        self_checks = {path: Disagreement(**found) for path, found in saved.get("self_checks", {}).items()}
        _read_model(path, trainer)
        _restore_optimizer(trainer, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileError(path, f"not a whole checkpoint of this run: {_reason(error)}") from None
    _restore_random_state(tensors)
    trainer.step, trainer.self_checks = step, self_checks
    return state


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the whole checkpoints of a run by ascending step; half-written ones are not among them."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / STATE_JSON).is_file()
    ]
    return [path for _, path in sorted(found)]


def remove_old_checkpoints(output_dir: str | Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; 0 keeps all."""
    for path in checkpoints(output_dir)[: -keep or None] if keep else []:
        shutil.rmtree(path)


def _write_model(folder: Path, trainer: Trainer) -> None:
    policy = trainer.policy
    if policy.uses_lora:
        # the wrapped model's own names are not the plain model's: hand them over under those
        policy.model.save_pretrained(folder, state_dict=dict(policy.weights(policy.dtype)))
        policy.network.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    else:
        policy.model.save_pretrained(folder)
    load_tokenizer(trainer.config.model.path).save_pretrained(folder)


def _read_model(folder: Path, trainer: Trainer) -> None:
    policy = trainer.policy
    if not policy.uses_lora:
        policy.model.load_state_dict(load_model(folder).state_dict())
        return
    from peft import set_peft_model_state_dict

    missed = set_peft_model_state_dict(policy.network, load_file(folder / ADAPTER / "adapter_model.safetensors"))
    if missed.unexpected_keys:
        raise ValueError(f"the adapter has weights that the model has not: {missed.unexpected_keys[0]}")


def _write_training_state(folder: Path, trainer: Trainer, state: dict[str, Any]) -> None:
    tensors = dict(_optimizer_tensors(trainer)) | {CPU_RNG: torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[CUDA_RNG] = torch.cuda.get_rng_state()
    save_file(tensors, folder / STATE_TENSORS)
    contents = {"step": trainer.step, "self_checks": trainer.self_checks, "state": state}
    (folder / STATE_JSON).write_bytes(orjson.dumps(contents, option=orjson.OPT_INDENT_2))


def _optimizer_tensors(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """Yield (`exp_avg.<weight>`, ...) for every weight that the optimizer has moved."""
    for name, weight in trainer.policy.trained_parameters().items():
        for key, tensor in trainer.optimizer.state.get(weight, {}).items():
            yield f"{key}.{name}", tensor.contiguous()


def _restore_optimizer(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    trainer.optimizer.state.clear()
    weights = trainer.policy.trained_parameters()
    for key, tensor in tensors.items():
        if key in (CPU_RNG, CUDA_RNG):
            continue
        kind, _, name = key.partition(".")
        # copied onto the weight's device; also where load_file mapped the file
        trainer.optimizer.state[weights[name]][kind] = tensor.to(weights[name].device, copy=True)


def _restore_random_state(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors[CPU_RNG])
    if CUDA_RNG in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[CUDA_RNG])


def _replace(partial: Path, path: Path) -> None:
    """Give a whole folder its name. One of that name, from a run that was resumed before it, makes room."""
    if path.exists():
        path.rename(path.with_name(f".{path.name}.replaced"))
    partial.rename(path)
    _sync_one(path.parent)
    _remove_leftovers(path.parent)


def _remove_leftovers(output_dir: Path) -> None:
    """Remove what a kill left half-written, and what has been replaced."""
    for pattern in (".checkpoint-*.partial", ".checkpoint-*.replaced"):
        for folder in output_dir.glob(pattern):
            shutil.rmtree(folder)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
