"""`model.device`, `model.dtype` -> a torch device that is there, and the dtype to compute in."""

from __future__ import annotations

import torch

from treegrpo_cli.errors import UserError
from treegrpo_cli.models.drivers import why_no_cuda

BFLOAT16_CAPABILITY = (8, 0)
"""Of the first cards that compute in bfloat16: Ampere's."""


def choose_device(name: str) -> torch.device:
    """Resolve `model.device`; a card that it names is from now on the one that this process works on.

    Raises UserError for a device that torch does not know or that is not there, and for `auto` where there is a card
    that torch cannot use.
    """
    if name == "auto" and torch.cuda.is_available():
        return torch.device("cuda")
    if name.startswith(("auto", "cuda")) and (problem := why_no_cuda()):
        raise UserError(f'model.device: {problem}, or set model.device = "cpu"')
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.device: {name!r} cannot be used here ({reason})") from None
    if device.type == "meta":
        raise UserError("model.device: 'meta' knows shapes and no numbers; it is for neither sampling nor training")
    if device.type == "cpu":
        return torch.device("cpu")  # there is one, whatever number it is given
    if device.type == "cuda":
        torch.cuda.set_device(device)  # some kernels start on the current card, whatever their tensors are on
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `model.dtype`: `auto` is bfloat16 on CUDA, float32 elsewhere. Raises UserError where a card has none."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name == "bfloat16" and device.type == "cuda" and torch.cuda.is_available():
        _check_bfloat16(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _check_bfloat16(device: torch.device) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < BFLOAT16_CAPABILITY:
        raise UserError(
            f"model.dtype: {torch.cuda.get_device_name(device)} has no bfloat16 (compute capability {major}.{minor}, "
            f'and 8.0 is needed); set model.dtype = "float32"'
        )
