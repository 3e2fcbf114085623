"""The machine -> how many threads an update on a CPU takes: all cores where nobody else computes, else one.

Threads wait for each other at every barrier by spinning; where another process takes one of their cores, all wait
for it. Beside a busy core, two threads of vLLM's engine were 23 to 160 times slower than one. The engine, whose
steps are short, keeps one. Sums over other numbers of threads may differ in their last bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PROC_STAT = Path("/proc/stat")
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology"
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
IDLE_CORES, IDLE_SHARE = 0.25, 0.1
"""What others may compute, in cores or as a share of them, on a machine that counts as ours alone."""
LEAST_S = 1.0
"""Seconds over which others are watched at least."""

_set_num_threads = torch.set_num_threads
"""torch's own: vLLM's CPU engine puts a function in its place that does nothing."""


class Threads:
    """The threads of a run's updates; `num` = 0 lets the machine decide, anew before each update.

    `num_left` cores are left to what this process computes beside an update.
    Once others compute beside it a run goes on with one thread. `OMP_NUM_THREADS` goes before all but `num`.
    """

    def __init__(self, num: int, device: torch.device, say: Callable[[str], None], num_left: int = 0) -> None:
        self._say, self._cores = say, num or max(num_cores() - num_left, 1)
        self._fixed = num > 0 or "OMP_NUM_THREADS" in os.environ or device.type != "cpu"
        self.num = num or (torch.get_num_threads() if self._fixed else 0)
        self._known = self._shared = False
        self._since = Usage.now()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Compute with them for a while."""
        if not self._fixed:
            self._decide()
        before = torch.get_num_threads()
        _set_num_threads(self.num)
        try:
            yield
        finally:
            _set_num_threads(before)
            self._since = Usage.now()

    def _decide(self) -> None:
        others = cores_of_others(self._since, Usage.now())
        if others is not None:
            self._known, self._shared = True, self._shared or others >= max(IDLE_CORES, IDLE_SHARE * self._cores)
        num = self._cores if self._known and not self._shared else 1
        if num != (self.num or 1):
            used = "nobody else computes here" if num > 1 else f"others use {others:.1f} cores"
            self._say(f"updates take {num} of {self._cores} cores: {used}; train.num_threads sets another number")
        self.num = num


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds up to a moment: on the clock, of all cores together that computed, and of this process among them."""

    clock_s: float
    all_s: float | None
    own_s: float

    @classmethod
    def now(cls) -> Usage:
        """Read them; what the system does not tell is None."""
        times = os.times()
        return cls(time.monotonic(), busy_seconds(), times.user + times.system)


def cores_of_others(start: Usage, end: Usage) -> float | None:
    """Return how many cores other processes kept busy, on average; None over too short a time, or not known."""
    elapsed = end.clock_s - start.clock_s
    if start.all_s is None or end.all_s is None or elapsed < LEAST_S:
        return None
    return max(0.0, (end.all_s - start.all_s) - (end.own_s - start.own_s)) / elapsed


def busy_seconds() -> float | None:
    """Return the seconds that all cores have computed since the machine started, from Linux's own count."""
    try:
        fields = PROC_STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, soft, steal = (int(field) for field in fields[:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def num_cores() -> int:
    """Return the physical cores that this process may use, by affinity and quota; at least 1."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_core(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota()))


def _core(cpu: int) -> tuple[str, str]:
    """The core that a logical CPU belongs to: two may share one."""
    folder = Path(TOPOLOGY.format(cpu))
    try:
        return (folder / "physical_package_id").read_text(), (folder / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def _quota() -> int:
    """Whole cores that the container may use."""
    try:
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # none, or `max`
        return 1 << 20
