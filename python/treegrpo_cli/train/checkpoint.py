"""Trainer <-> `checkpoint-N/`: a model that transformers loads, and what an exact resume needs beside it.

    config.json, *.safetensors, tokenizer   the model: float32 as trained; with LoRA merged, in model.dtype
    adapter/                                with LoRA: the adapter, as peft loads it
    training_state*.tensors                 Adam's moments
    training_state.json                     the step, and the loop's own state (data position and the like)

One process and many ranks write the same files (`train.tensor_files`), and any number of ranks goes on from them.

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
from torch import Tensor

from treegrpo_cli.errors import FileError, said
from treegrpo_cli.models.pretrained import load_tokenizer
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
from treegrpo_cli.train.model_folder import tied_names, write_model, write_settings
from treegrpo_cli.train.shards import own_part, whole
from treegrpo_cli.train.tensor_files import write_files
from treegrpo_cli.train.together import ElsewhereError, on_all, on_first
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
        with torch.no_grad():
            for name, weight in _stored_weights(trainer).items():
                own_part(weight).copy_(self.weights[name])
        trainer.optimizer.state.clear()
        for name, weight in trainer.policy.trained_parameters().items():
            if name in self.moments:
                moments = self.moments[name].items()
                trainer.optimizer.state[weight] = {key: _moment(key, part, weight) for key, part in moments}
        trainer.step, checks = self.saved.step, trainer.paths.checks
        checks.found = dict(self.saved.self_checks) if self.saved.checked_on == checks.subject else {}


def save_checkpoint(output_dir: str | Path, trainer: Trainer, state: dict[str, Any]) -> Path:
    """Write `output_dir/checkpoint-N`, N = `trainer.step`; return its path. Every rank calls it and writes its share.

    `state` is the loop's own: any JSON; `load_checkpoint` returns it. Raises FileError where the disk
    does not take it; earlier checkpoints are untouched then.
    """
    path, ranks = Path(output_dir) / f"checkpoint-{trainer.step}", trainer.ranks
    partial = partial_of(path)
    adapter = _gathered_adapter(trainer)

    def finish() -> None:
        _write_training_state(partial, trainer, state)
        for part in [*partial.rglob("*"), partial]:
            sync(part)
        put_in_place(path)

    try:
        on_first(ranks, path, lambda: _begin(partial, trainer))
        on_all(ranks, path, lambda: write_model(partial, trainer.policy, ranks))
        on_all(ranks, path, lambda: _write_moments(partial, trainer))
        on_first(ranks, path, lambda: _write_beside(partial, trainer, adapter))
        on_first(ranks, path, finish)
    except (OSError, SafetensorError, ElsewhereError) as error:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, ElsewhereError):
            raise
        raise FileError(path, f"{said(error)}; earlier checkpoints are whole") from None
    return path


def read_checkpoint(path: str | Path, trainer: Trainer) -> Checkpoint:
    """Read all of a checkpoint and check it against this trainer's model, which stays as it is.

    Of what ranks hold together, each reads its part. Raises FileError, naming the file, for a folder that is no whole
    checkpoint, or one of another model.
    """
    path, policy = Path(path), trainer.policy
    saved = read_training_state(path)
    moments = read_moments(path / STATE_TENSORS, policy.trained_parameters(), saved.moved)
    read = read_adapter if policy.uses_lora else read_model
    return Checkpoint(saved, read(path, _stored_weights(trainer)), moments)


def load_checkpoint(path: str | Path, trainer: Trainer) -> dict[str, Any]:
    """Let `trainer` go on from a checkpoint; return the loop's state. Raises FileError as `read_checkpoint` does.

    Every rank calls it; where one cannot, none goes on from there.
    """
    checkpoint = on_all(trainer.ranks, path, lambda: read_checkpoint(path, trainer))
    checkpoint.apply(trainer)
    return checkpoint.saved.state


def _begin(partial: Path, trainer: Trainer) -> None:
    remove_leftovers(partial.parent)
    partial.mkdir(parents=True)
    write_settings(partial, trainer.policy)


def _write_beside(folder: Path, trainer: Trainer, adapter: dict[str, Tensor]) -> None:
    """Write what is small: the tokenizer, and the adapter where there is one."""
    if trainer.policy.uses_lora:
        trainer.policy.network.save_pretrained(folder / ADAPTER, save_embedding_layers=False, state_dict=adapter)
    tokenizer = trainer.tokenizer or load_tokenizer(trainer.config.model.path, trainer.config.model.chat_template)
    tokenizer.save_pretrained(folder)


def _stored_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The tensors that a checkpoint gives back, in the memory of the model: tied ones once; with LoRA the adapter's."""
    policy = trainer.policy
    if not policy.uses_lora:
        tied = tied_names(policy.model)
        return {name: tensor for name, tensor in policy.model.state_dict().items() if name not in tied}
    from peft import get_peft_model_state_dict

    weights: dict[str, Tensor] = get_peft_model_state_dict(policy.network, save_embedding_layers=False)
    return weights


def _gathered_adapter(trainer: Trainer) -> dict[str, Tensor]:
    """The adapter's tensors, whole, by their names in the network."""
    policy = trainer.policy
    if not policy.uses_lora:
        return {}
    return {name: whole(weight.detach()).cpu() for name, weight in policy.trained_parameters().items()}


def _write_moments(folder: Path, trainer: Trainer) -> None:
    parts = {f"{key}.{name}": part for name, parts in _moments(trainer) for key, part in parts.items()}
    num_bytes = {name: part.numel() * part.element_size() for name, part in parts.items()}
    write_files(folder, STATE_TENSORS, num_bytes, ((name, whole(part)) for name, part in parts.items()), trainer.ranks)


def _moment(key: str, part: Tensor, weight: Tensor) -> Tensor:
    """A moment as Adam keeps it: on the weight's device, and in parts where the weight is; never the mapped file."""
    if key == "step":
        return part.to(weight.device, copy=True)
    moment = torch.empty_like(weight, requires_grad=False)
    own_part(moment).copy_(part)
    return moment


def _write_training_state(folder: Path, trainer: Trainer, state: dict[str, Any]) -> None:
    contents = {
        "step": trainer.step,
        "moved": [name for name, _ in _moments(trainer)],
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
