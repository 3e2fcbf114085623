"""`model.device` -> a torch device that is there."""

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
