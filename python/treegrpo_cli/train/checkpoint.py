"""Trainer <-> `checkpoint-N/`: a model that transformers loads, and what an exact resume needs beside it.

    config.json, *.safetensors, tokenizer   the model: float32 as trained; with LoRA merged, in model.dtype
    adapter/                                with LoRA: the adapter, as peft loads it
    training_state.tensors                  Adam's moments
    training_state.json                     the step, and the loop's own state (data position and the like)

A checkpoint is written under another name and renamed when it is whole and on disk, so that a kill or
a full disk leaves the earlier ones as they were. Nothing is pickled. What a step draws at random depends on seed and
step alone, so that no state of a generator is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from treegrpo_cli.errors import FileError, said
from treegrpo_cli.models.pretrained import load_tokenizer
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.train.checkpoint_folders import (
    STATE_JSON,
    checkpoints,
    partial_of,
    put_in_place,
    remove_leftovers,
    remove_old_checkpoints,
    sync,
)
from treegrpo_cli.train.checkpoint_parts import (
    ADAPTER,
    MOMENTS,
    STATE_TENSORS,
    TrainingState,
    read_adapter,
    read_model,
    read_moments,
    read_training_state,
)
from treegrpo_cli.train.trainer import Trainer

__all__ = [
    "Checkpoint",
    "checkpoints",
    "load_checkpoint",
    "read_checkpoint",
    "remove_old_checkpoints",
    "save_checkpoint",
]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint that was read whole and fits the trainer's model.

    weights: the model's, or with LoRA the adapter's, by name · moments: Adam's by the name of the weight.
    """

    saved: TrainingState
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]

    def apply(self, trainer: Trainer) -> None:
        """Let a trainer go on from here."""
        policy = trainer.policy
        if policy.uses_lora:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(policy.network, self.weights)
        else:
            policy.model.load_state_dict(self.weights)
        trainer.optimizer.state.clear()
        for name, weight in policy.trained_parameters().items():
            if name in self.moments:
                moments = self.moments[name].items()
                # copied onto the weight's device; also where the file is mapped
                trainer.optimizer.state[weight] = {key: part.to(weight.device, copy=True) for key, part in moments}
        trainer.step, checks = self.saved.step, trainer.paths.checks
        checks.found = dict(self.saved.self_checks) if self.saved.checked_on == checks.subject else {}


def save_checkpoint(output_dir: str | Path, trainer: Trainer, state: dict[str, Any]) -> Path:
    """Write `output_dir/checkpoint-N`, N = `trainer.step`; return its path.

    `state` is the loop's own: any JSON; `load_checkpoint` returns it. Raises FileError where the disk
    does not take it; earlier checkpoints are untouched then.
    """
    path = Path(output_dir) / f"checkpoint-{trainer.step}"
    partial = partial_of(path)
    try:
        remove_leftovers(path.parent)
        partial.mkdir(parents=True)
        _write_model(partial, trainer)
        _write_training_state(partial, trainer, state)
        for part in [*partial.rglob("*"), partial]:
            sync(part)
        put_in_place(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise FileError(path, f"{said(error)}; earlier checkpoints are whole") from None
    return path


def read_checkpoint(path: str | Path, trainer: Trainer) -> Checkpoint:
    """Read all of a checkpoint and check it against this trainer's model, which stays as it is.

    Raises FileError, naming the file, for a folder that is no whole checkpoint, or one of another model.
    """
    path, policy = Path(path), trainer.policy
    saved = read_training_state(path)
    moments = read_moments(path / STATE_TENSORS, policy.trained_parameters(), saved.moved)
    if policy.uses_lora:
        return Checkpoint(saved, read_adapter(path, _adapter_weights(policy.network)), moments)
    return Checkpoint(saved, read_model(path, policy.model.state_dict()), moments)


def load_checkpoint(path: str | Path, trainer: Trainer) -> dict[str, Any]:
    """Let `trainer` go on from a checkpoint; return the loop's state. Raises FileError as `read_checkpoint` does."""
    checkpoint = read_checkpoint(path, trainer)
    checkpoint.apply(trainer)
    return checkpoint.saved.state


def _write_model(folder: Path, trainer: Trainer) -> None:
    policy = trainer.policy
    if policy.uses_lora:
        # the wrapped model's own names are not the plain model's: hand them over under those
        policy.model.save_pretrained(folder, state_dict=_on_cpu(policy.weights(policy.dtype)))
        policy.network.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    else:
        policy.model.save_pretrained(folder)
    tokenizer = trainer.tokenizer or load_tokenizer(trainer.config.model.path, trainer.config.model.chat_template)
    tokenizer.save_pretrained(folder)


def _on_cpu(weights: Weights) -> dict[str, Tensor]:
    """A copy of the merged model has no room beside the trained one on its device."""
    return {name: tensor.cpu() for name, tensor in weights}


def _adapter_weights(network: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    weights: dict[str, Tensor] = get_peft_model_state_dict(network, save_embedding_layers=False)
    return weights


def _write_training_state(folder: Path, trainer: Trainer, state: dict[str, Any]) -> None:
    moments = dict(_moments(trainer))
    save_file(
        {f"{key}.{name}": part.contiguous() for name, parts in moments.items() for key, part in parts.items()},
        folder / STATE_TENSORS,
    )
    contents = {
        "step": trainer.step,
        "moved": list(moments),
        "self_checks": trainer.paths.checks.found,
        "checked_on": trainer.paths.checks.subject,
        "state": state,
    }
    (folder / STATE_JSON).write_bytes(orjson.dumps(contents, option=orjson.OPT_INDENT_2))


def _moments(trainer: Trainer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the moments of every weight that the optimizer has moved."""
    for name, weight in trainer.policy.trained_parameters().items():
        if found := trainer.optimizer.state.get(weight):
            yield name, {key: torch.as_tensor(found[key]) for key in MOMENTS}
