"""A device -> how much memory it has, and how much of it is free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_OF_THIS_PROCESS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes. `free` is what a program that starts now may take."""

    name: str
    total: int
    free: int


def gib(num_bytes: int) -> str:
    """Bytes in GiB.

    >>> gib(3 * 2**29)
    '1.5'
    """
    return f"{num_bytes / 2**30:,.1f}"


def memory_of(device: torch.device) -> DeviceMemory:
    """Look: a GPU's own memory; the machine's for anything else, or what its control group may take of it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(str(device), total, free)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = min([machine, *_limits()])
    return DeviceMemory("this machine" if total == machine else "this container", total, total)


def _limits() -> list[int]:
    """The limits of the control groups that this process is in: of version 2, and of version 1."""
    try:
        groups = [line.split(":", 2) for line in CGROUP_OF_THIS_PROCESS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers == "":
            inside = CGROUPS / path.strip("/")
            files = [folder / "memory.max" for folder in (inside, *inside.parents) if folder.is_relative_to(CGROUPS)]
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            files = [root / path.strip("/") / "memory.limit_in_bytes", root / "memory.limit_in_bytes"]
        else:
            continue
        found += [limit for limit in map(_limit, files) if limit]
    return found


def _limit(file: Path) -> int | None:
    """The number in a file, None where there is none: `max`, or no such file."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
