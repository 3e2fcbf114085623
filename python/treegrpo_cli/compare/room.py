"""Settings of a run -> how many like it this machine has room for: `python -m treegrpo_cli.compare.room FILE`.

It is run in a process of its own, because it imports torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

LIBRARY_BYTES = 3 << 29
"""Of a process for torch, transformers and the engine, beside what a run's own memory is counted as."""


class Room(NamedTuple):
    """What the machine has, and how much of it a run needs; 0 bytes where that cannot be counted."""

    device: str
    cores: int
    total_bytes: int
    run_bytes: int

    def num_jobs(self, num_runs: int) -> int:
        """Return how many of the runs go at once: one on a GPU, else as many as cores and memory hold."""
        if self.device != "cpu":
            return 1
        by_memory = self.total_bytes // (self.run_bytes + LIBRARY_BYTES)
        return max(1, min(num_runs, self.cores, by_memory))


def measure(settings: Path) -> Room:
    """Count. Raises UserError where settings, model or device are wrong."""
    from treegrpo_cli.config.files import load_config
    from treegrpo_cli.models.devices import choose_device
    from treegrpo_cli.models.memory import memory_of
    from treegrpo_cli.run.memory import bytes_of_run
    from treegrpo_cli.train.threads import num_cores

    config = load_config(settings)
    device = choose_device(config.model.device)
    return Room(device.type, num_cores(), memory_of(device).total, bytes_of_run(config))


def main() -> None:
    """Print the room as JSON; a mistake of the user is left to the runs, which name it."""
    from treegrpo_cli.errors import UserError

    try:
        print(json.dumps(measure(Path(sys.argv[1]))))
    except UserError:
        print(json.dumps(Room("cpu", 1, 0, 0)))


if __name__ == "__main__":
    main()
