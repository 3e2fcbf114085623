"""What servers answered -> whether it is our own model that did, with these weights."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.models.folder import weight_files
from treegrpo_cli.models.memory import gib, memory_of
from treegrpo_cli.models.pretrained import load_causal_lm, shape_of_causal_lm
from treegrpo_cli.samplers.adapted import compute_head_in_float32
from treegrpo_cli.samplers.server_checks import Fingerprint

if TYPE_CHECKING:
    import torch

FREE_SHARE = 0.5
"""Of this machine's memory: a model that takes more is not loaded to compare it."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far log-probabilities may be apart, in nats: on average, and at most."""

    mean: float
    largest: float


TOLERANCES = {"float32": Tolerance(1e-3, 1e-2), "bfloat16": Tolerance(0.1, 1.0)}


def compare(
    found: Mapping[str, Fingerprint],
    contexts: Sequence[list[int]],
    model_path: str,
    dtype: str,
    say: Callable[[str], None],
    sent: Path | None = None,
) -> None:
    """Raise UserError, which names the server, where one has other weights than `model_path`, or those `sent` to it.

    Where the model is not on this disk, or is too large for this machine, it says so and compares nothing. It is loaded
    on the CPU, and gone behind this.
    """
    path = local_folder(model_path)
    if path is None:
        say(f"the servers' weights are not compared: {model_path} has none on this disk")
        return
    num_bytes = _bytes_of(path, dtype)
    if num_bytes > FREE_SHARE * _free():
        say(f"the servers' weights are not compared: {model_path} would take {gib(num_bytes)} GiB of memory here")
        return
    model = _load(path, dtype, sent)
    try:
        for name, fingerprint in found.items():
            if reason := _differs(model, contexts, fingerprint, TOLERANCES.get(dtype, TOLERANCES["bfloat16"])):
                source = "the weights that it was sent" if sent else f"model.path = {model_path!r} in {dtype}"
                raise UserError(f"{name}: does not compute {source}: {reason}")
    finally:
        del model
        gc.collect()


def local_folder(model_path: str) -> str | None:
    """Return the folder that has a model's weights on this disk, None where there is none: nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = model_path
    if not Path(model_path).is_dir():
        try:
            folder = snapshot_download(model_path, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            return None
    return folder if weight_files(Path(folder)) else None


def _differs(model: Any, contexts: Sequence[list[int]], found: Fingerprint, tolerance: Tolerance) -> str:
    """Say how a server's greedy turns are not what `model` says of them, "" where they are."""
    apart = [
        max(abs(ours - theirs), best - ours)
        for context, (tokens, logprobs) in zip(contexts, found.turns, strict=True)
        for (ours, best), theirs in zip(_logprobs(model, context, tokens), logprobs, strict=True)
    ]
    mean, largest = math.fsum(apart) / len(apart), max(apart)
    if mean <= tolerance.mean and largest <= tolerance.largest:
        return ""
    return (
        f"log-probabilities are {mean:.2g} nats away on average and {largest:.2g} at most, and rounding explains "
        f"{tolerance.mean:g} and {tolerance.largest:g}; has it other weights, or another dtype?"
    )


def _logprobs(model: Any, context: list[int], tokens: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Yield each token's log-probability behind what stands before it, and the largest that one has there."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([[*context, *tokens]])
        logits = model(ids).logits[0, len(context) - 1 : -1]
        logprobs = logits.float().log_softmax(dim=-1)
    for token, row in zip(tokens, logprobs, strict=True):
        yield float(row[token]), float(row.max())


def _load(path: str, dtype: str, sent: Path | None) -> Any:
    import torch

    model = load_causal_lm(path, getattr(torch, dtype)).eval()
    if sent is not None:
        model.load_state_dict(dict(_stored(sent)), strict=True)
    compute_head_in_float32(model)
    return model


def _stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).items()


def _bytes_of(path: str, dtype: str) -> int:
    import torch

    size = getattr(torch, dtype).itemsize
    return sum(weight.numel() * size for weight in shape_of_causal_lm(path).parameters())


def _free() -> int:
    import torch

    return memory_of(torch.device("cpu")).free
