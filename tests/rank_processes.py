"""Ranks in processes of their own: every case is trained on each number of ranks that it names.

`python -m tests.rank_processes MODELS RESULTS` imports the trainer once and forks the ranks, all of which have ended
when it does; each leaves `RESULTS/SIZE/RANK/NAME.safetensors` behind a case.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from treegrpo_cli.errors import UserError
from treegrpo_cli.train import sharding  # noqa: F401  each rank would import it
from treegrpo_cli.train.ranks import JoinedRanks, Ranks, join, leave, open_store

from tests.rank_cases import CASES, run_case, write_whole

LONGEST_S = 500
"""After so many seconds a rank ends, whatever it waits for."""

TIMEOUT_S = 120.0


def main(models: Path, results: Path) -> None:
    """Train every case; exit with 1 where a rank fails."""

    def work(ranks: Ranks) -> None:
        folder = results / str(ranks.size) / str(ranks.rank)
        folder.mkdir(parents=True)
        write_whole(folder / "meeting", json.dumps(_meet(ranks)))
        for name, case in CASES.items():
            if ranks.size in case.sizes:
                run_case(name, models, ranks).save(folder / f"{name}.safetensors")

    pids = [pid for size in (2, 3) for pid in fork_ranks(size, work)]
    sys.exit(not ended_well(pids))


def _meet(ranks: Ranks) -> dict[str, Any]:
    """What a rank sees of the others; one of them fails in its turn."""
    failed = False
    try:
        with ranks.in_turn():
            start = time.monotonic()
            time.sleep(0.05)
            end = time.monotonic()
            if ranks.rank == 1:
                raise UserError("no model here")
    except UserError:
        failed = True
    mine = torch.tensor([float(ranks.rank), 10.0 - ranks.rank])
    with _on_two_machines(ranks).in_turn():
        pass
    return {
        "turn": [start, end],
        "failed": failed,
        "sum": ranks.sum(mine).tolist(),
        "max": ranks.max(mine).tolist(),
        "gather": ranks.gather(mine).tolist(),
        "agreed": ranks.agree({"of": ranks.rank, "infinite": float("inf")}),
    }


def _on_two_machines(ranks: Ranks) -> JoinedRanks:
    """The same ranks, as if the first were alone on its machine and the others together on another."""
    turn, turns = (0, 1) if ranks.is_first else (ranks.rank - 1, ranks.size - 1)
    return JoinedRanks(torch.device("cpu"), turn, turns)


def fork_ranks(size: int, work: Callable[[Ranks], None]) -> list[int]:
    """Fork so many processes that do this work as ranks; the first tells the others where they meet."""
    reading, writing = os.pipe()
    pids = []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            os._exit(_run_rank(rank, size, reading, writing, work))
        pids.append(pid)
    os.close(reading)
    os.close(writing)
    return pids


def ended_well(pids: Sequence[int]) -> bool:
    """Wait for all of them."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return not any(codes)


def _run_rank(rank: int, size: int, reading: int, writing: int, work: Callable[[Ranks], None]) -> int:
    signal.alarm(LONGEST_S)
    try:
        work(_join(rank, size, reading, writing))
        leave()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _join(rank: int, size: int, reading: int, writing: int) -> Ranks:
    if rank == 0:
        store = open_store(timeout_s=TIMEOUT_S)
        os.write(writing, f"{store.port:6d}".encode() * (size - 1))
        return join(rank, size, store, timeout_s=TIMEOUT_S)
    return join(rank, size, ("127.0.0.1", int(os.read(reading, 6))), timeout_s=TIMEOUT_S)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:3]))
