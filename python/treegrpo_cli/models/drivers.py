"""This machine -> why an NVIDIA card that it has cannot be used by the torch that is installed.

With a driver older than its CUDA, torch says that there is no card; a run would take the CPU without a word.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch

from treegrpo_cli.errors import said

DEVICES = Path("/dev")
VERSION_FILE = Path("/proc/driver/nvidia/version")
SMI_S = 10.0
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA -> that of the oldest driver that runs it (CUDA Toolkit release notes, minor compatibility)."""


def why_no_cuda() -> str | None:
    """Say why torch does not see this machine's card; None where it sees it, has no CUDA, or no card is here.

    A card that `CUDA_VISIBLE_DEVICES` hides is none.
    """
    if torch.version.cuda is None or torch.cuda.is_available() or _hidden() or not _has_card():
        return None
    driver = driver_version()
    oldest = OLDEST_DRIVERS.get(int(torch.version.cuda.split(".")[0]), max(OLDEST_DRIVERS.values()))
    if driver and int(driver.split(".")[0]) < oldest:
        return (
            f"the NVIDIA driver is {driver}, and this torch (CUDA {torch.version.cuda}) needs {oldest} or later: "
            "update the driver"
        )
    return f"there is an NVIDIA card (driver {driver or 'unknown'}) that torch cannot use: {_what_cuda_says()}"


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver that is loaded, such as `535.129.03`; None where none is found."""
    try:
        text = VERSION_FILE.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        text = _ask_smi()
    found = re.search(r"\b\d{3,4}\.\d+(\.\d+)*\b", text)
    return found[0] if found else None


def _ask_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0] if done.returncode == 0 else ""


def _hidden() -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` begins with what is no card's number or name, as `-1` or Slurm's `NoDevFiles`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and re.match(r"\d|GPU-|MIG-", visible.strip()) is None


def _has_card() -> bool:
    """Whether this machine or container has a card: a driver alone is seen in every container of its host."""
    own = any(re.fullmatch(r"nvidia\d+", path.name) for path in DEVICES.glob("nvidia*"))
    return own or ((DEVICES / "dxg").exists() and driver_version() is not None)  # the second is Windows' subsystem


def _what_cuda_says() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return said(error)
    return "it does not say why"
