"""A training step on several ranks of this machine against one process: seconds, and how they relate.

    python tests/benchmarks/bench_ranks.py

Each rank takes one thread. Half the time of one process on two ranks would be the most that can be gained; what is lost
is the exchange of weights and gradients through the host's memory, and rounds in which one rank waits for another.
Computing is what a process takes of its core: where others share the cores, it says more than the clock.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli.train import sharding  # noqa: F401  each rank would import it
from treegrpo_cli.train.ranks import ALONE, Ranks
from treegrpo_cli.train.trainer import Trainer

from tests.rank_processes import ended_well, fork_ranks
from tests.steps import make_config, make_step
from tests.tiny import make_tiny_model


def time_steps(model: Path, ranks: Ranks, args: argparse.Namespace) -> list[float]:
    """Median seconds of an update, on the clock and of this process's computing, behind the first, which checks."""
    train = {"attention_path": "runs", "prompts_per_step": args.prompts, "microbatch_tokens": 4096}
    trainer = Trainer(make_config(model, train=train), ranks=ranks)
    forest, scores = make_step(0, num_prompts=args.prompts, turn_tokens=args.turn_tokens)
    times = []
    for _ in range(args.repeats + 1):
        ranks.agree(0)
        start = time.perf_counter(), time.process_time()
        trainer.update(forest, scores)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def main() -> None:
    """Time one process and each number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--turn-tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model", hidden=args.hidden, layers=args.layers, max_model_len=4096)
        found = Path(folder) / "seconds"

        def work(ranks: Ranks) -> None:
            times = time_steps(model, ranks, args)
            if ranks.is_first:
                found.write_text(json.dumps(times))

        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print("| ranks | s a step | of one process | computing, s a step and rank | of one process |")
        print("|---|---|---|---|---|")
        work(ALONE)
        alone = json.loads(found.read_text())
        for size in [1, *args.ranks]:
            if size > 1 and not ended_well(fork_ranks(size, work)):
                sys.exit("a rank failed")
            clock, computing = json.loads(found.read_text())
            print(f"| {size} | {clock:.2f} | {clock / alone[0]:.2f} | {computing:.2f} | {computing / alone[1]:.2f} |")


if __name__ == "__main__":
    main()
