"""`model.device`, `model.dtype` -> a torch device that is there, and the dtype to compute in."""

from __future__ import annotations

import torch

from treegrpo_cli.errors import UserError


def choose_device(name: str) -> torch.device:
    """Resolve `model.device`. Raises UserError for a device that torch does not know or that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.device: {name!r} cannot be used here ({reason})") from None


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `model.dtype`: `auto` is bfloat16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
