"""The files of a checkpoint -> their contents, each checked before anything is put to use.

A file that is cut, edited or of another run is a FileError that names it: what is missing, has another shape or
dtype, or is not a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.train.checkpoint_folders import STATE_JSON, step_of
from treegrpo_cli.train.networks import load_model
from treegrpo_cli.train.self_check import Disagreement

STATE_TENSORS, ADAPTER = "training_state.tensors", "adapter"
# The tensors are safetensors, but vLLM takes every file of that ending for weights of the model.
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight."""

MAX_STATE_BYTES = 1 << 26
"""Of `training_state.json`; ours take a few thousand."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """`training_state.json`. step: rollout steps trained · moved: weights with moments · state: the loop's own.

    checked_on: see `SelfChecks.subject`; empty where it is not said.
    """

    step: int
    moved: list[str]
    self_checks: dict[str, Disagreement]
    checked_on: str
    state: dict[str, Any]


def read_training_state(folder: Path) -> TrainingState:
    """Read and check `training_state.json`."""
    file = folder / STATE_JSON
    saved = _read_json(file)
    step, moved, checks, state = (saved.get(key) for key in ("step", "moved", "self_checks", "state"))
    if type(step) is not int or step < 0:
        raise _refused(file, f"step is {step!r:.40}")
    if step_of(folder) not in (None, step):
        raise _refused(file, f"it is of step {step}")
    if not isinstance(moved, list) or not all(isinstance(name, str) for name in moved):
        raise _refused(file, "moved is no list of weights")
    if not isinstance(checks, dict) or not isinstance(state, dict):
        raise _refused(file, f"{'state' if isinstance(checks, dict) else 'self_checks'} is no table")
    found = {path: _self_check(file, path, one) for path, one in checks.items()}
    return TrainingState(step, moved, found, str(saved.get("checked_on", "")), state)


def read_moments(file: Path, trained: Mapping[str, Tensor], moved: list[str]) -> dict[str, dict[str, Tensor]]:
    """Read and check Adam's moments of the weights `moved`, which are some of those that are trained."""
    for name in moved:
        if name not in trained:
            raise _refused(file.with_name(STATE_JSON), f"{name:.100} is no weight that is trained")
    like = {
        f"{key}.{name}": torch.empty((), device="meta") if key == "step" else trained[name]
        for name in moved
        for key in MOMENTS
    }
    tensors = _read_tensors(file, like)
    for name, tensor in tensors.items():
        if name.startswith("step.") and not (tensor >= 1 and tensor == tensor.round()):
            raise _refused(file, f"{name} is {float(tensor)}")
        if name.startswith("exp_avg_sq.") and bool((tensor < 0).any()):
            raise _refused(file, f"{name} has numbers below 0")
    return {name: {key: tensors[f"{key}.{name}"] for key in MOMENTS} for name in moved}


def read_model(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read and check the model's weights."""
    try:
        weights: dict[str, Tensor] = load_model(folder).state_dict()
    except UserError as error:
        raise _refused(folder, str(error).removeprefix("model.path: ")) from None
    _check_names(folder, weights.keys(), like)
    for name, weight in weights.items():
        _check_tensor(folder, name, weight, like[name])
    return weights


def read_adapter(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read and check the adapter's weights."""
    return _read_tensors(folder / ADAPTER / "adapter_model.safetensors", like)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():
            raise _refused(file, "there is no such file")
        if file.stat().st_size > MAX_STATE_BYTES:
            raise _refused(file, f"it has more than {MAX_STATE_BYTES:,} bytes")
        saved = orjson.loads(file.read_bytes())
    except OSError as error:
        raise _refused(file, said(error)) from None
    except orjson.JSONDecodeError as error:
        raise _refused(file, f"not JSON: {error}") from None
    if not isinstance(saved, dict):
        raise _refused(file, "no table")
    return saved


def _self_check(file: Path, path: str, found: Any) -> Disagreement:
    fields = found if isinstance(found, dict) else {}
    difference, refusal, longest = fields.get("difference"), fields.get("refusal"), fields.get("longest", 0)
    is_number = difference is None or (type(difference) in (int, float) and difference >= 0)
    is_count = type(longest) is int and longest >= 0
    is_check = fields.keys() | {"longest"} == {"difference", "refusal", "longest"}
    if not (is_check and is_number and is_count and isinstance(refusal, str | None)):
        raise _refused(file, f"self_checks.{path:.40} is no difference and refusal")
    return Disagreement(difference, refusal, longest)


def _read_tensors(file: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors of these names, shapes and dtypes; shapes are compared before anything is read."""
    if not file.is_file():
        raise _refused(file, "there is no such file")
    tensors = {}
    try:
        with safe_open(file, framework="pt") as stored:
            _check_names(file, stored.keys(), like)
            for name, wanted in like.items():
                _check_shape(file, name, stored.get_slice(name).get_shape(), wanted)
                tensors[name] = stored.get_tensor(name)
                _check_tensor(file, name, tensors[name], wanted)
    except (OSError, SafetensorError) as error:
        raise _refused(file, said(error)) from None
    return tensors


def _check_names(file: Path, names: Any, like: Mapping[str, Tensor]) -> None:
    if missing := sorted(like.keys() - set(names)):
        raise _refused(file, f"{missing[0]} is missing")
    if unknown := sorted(set(names) - like.keys()):
        raise _refused(file, f"{unknown[0]:.100} is not of this model")


def _check_tensor(file: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    _check_shape(file, name, tensor.shape, wanted)
    if tensor.dtype != wanted.dtype:
        raise _refused(file, f"{name} is {tensor.dtype}, not {wanted.dtype}")
    if not bool(torch.isfinite(tensor).all()):
        raise _refused(file, f"{name} has numbers that are not finite")


def _check_shape(file: Path, name: str, shape: Any, wanted: Tensor) -> None:
    if list(shape) != list(wanted.shape):
        raise _refused(file, f"{name} is of shape {list(shape)!r:.60}, not {list(wanted.shape)}")


def _refused(file: Path, reason: str) -> FileError:
    return FileError(file, f"not a whole checkpoint of this run: {reason}")
