"""The files of a checkpoint -> their contents, each checked before anything is put to use.

Of a tensor that ranks hold together, each reads and checks its own part.

A file that is cut, edited or of another run is a FileError that names it: what is missing, has another shape or
dtype, or is not a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.models.folder import weight_files
from treegrpo_cli.train.checkpoint_folders import STATE_JSON, step_of
from treegrpo_cli.train.model_folder import tied_names
from treegrpo_cli.train.networks import load_model
from treegrpo_cli.train.self_check import Disagreement
from treegrpo_cli.train.shards import is_sharded, place_of
from treegrpo_cli.train.tensor_files import files_of

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
    tensors = _read_tensors(files_of(file.parent, file.name), like)
    for name, tensor in tensors.items():
        if name.startswith("step.") and not (tensor >= 1 and tensor == tensor.round()):
            raise _refused(file, f"{name} is {float(tensor)}")
        if name.startswith("exp_avg_sq.") and bool((tensor < 0).any()):
            raise _refused(file, f"{name} has numbers below 0")
    return {name: {key: tensors[f"{key}.{name}"] for key in MOMENTS} for name in moved}


def read_model(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read and check the model's weights; tied ones are in `like` once."""
    try:
        files = weight_files(folder)
    except (OSError, ValueError) as error:
        raise _refused(folder, said(error)) from None
    if names_in(files) == like.keys():
        return _read_tensors(files, like)
    try:  # stored as the library stores it, and not as it computes it: it knows the way from one to the other
        model = load_model(folder)
    except UserError as error:
        raise _refused(folder, str(error).removeprefix("model.path: ")) from None
    weights: dict[str, Tensor] = model.state_dict()
    _check_names(folder, weights.keys() - tied_names(model), like)
    for name, wanted in like.items():
        _check_tensor(folder, name, weights[name], wanted)
    return {name: weights[name][place_of(wanted)] for name, wanted in like.items()}


def read_adapter(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read and check the adapter's weights."""
    return _read_tensors([folder / ADAPTER / "adapter_model.safetensors"], like)


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


def names_in(files: Sequence[Path]) -> set[str]:
    """The names of all tensors in these files. Raises FileError for one that is broken."""
    names: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                names.update(stored.keys())
        except (OSError, SafetensorError) as error:
            raise _refused(file, said(error)) from None
    return names


def _read_tensors(files: Sequence[Path], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read this rank's part of the tensors of these names, shapes and dtypes, which lie in one file or in several.

    Shapes are compared before anything is read.
    """
    if not files or not files[0].is_file():
        raise _refused(files[0], "there is no such file")
    _check_names(files[0], names_in(files), like)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - it is no mapping
                    if name in tensors:
                        raise _refused(file, f"{name} is there twice")
                    _check_shape(file, name, stored.get_slice(name).get_shape(), like[name])
                    tensors[name] = _read_part(stored, name, like[name])
                    _check_part(file, name, tensors[name], like[name])
        except (OSError, SafetensorError) as error:
            raise _refused(file, said(error)) from None
    return tensors


def _read_part(stored: Any, name: str, wanted: Tensor) -> Tensor:
    part: Tensor = stored.get_slice(name)[place_of(wanted)] if is_sharded(wanted) else stored.get_tensor(name)
    return part


def _check_names(file: Path, names: Any, like: Mapping[str, Tensor]) -> None:
    if missing := sorted(like.keys() - set(names)):
        raise _refused(file, f"{missing[0]} is missing")
    if unknown := sorted(set(names) - like.keys()):
        raise _refused(file, f"{unknown[0]:.100} is not of this model")


def _check_tensor(file: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    _check_shape(file, name, tensor.shape, wanted)
    _check_part(file, name, tensor, wanted)


def _check_part(file: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    if tensor.dtype != wanted.dtype:
        raise _refused(file, f"{name} is {tensor.dtype}, not {wanted.dtype}")
    if not bool(torch.isfinite(tensor).all()):
        raise _refused(file, f"{name} has numbers that are not finite")


def _check_shape(file: Path, name: str, shape: Any, wanted: Tensor) -> None:
    if list(shape) != list(wanted.shape):
        raise _refused(file, f"{name} is of shape {list(shape)!r:.60}, not {list(wanted.shape)}")


def _refused(file: Path, reason: str) -> FileError:
    return FileError(file, f"not a whole checkpoint of this run: {reason}")
