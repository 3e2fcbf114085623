"""`model.device` -> a torch device that is there, and the memory that it took."""

from __future__ import annotations

import resource
import sys

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


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that was held at once since the process began.

    On CUDA what torch allocated on the device; else what the process had in memory, all of it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
