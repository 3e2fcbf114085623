"""Where one driver's limits lie as the work grows: `python tests/benchmarks/bench_projection.py`.

What the driver does is measured on this machine (`driver_rates.py`). What GPUs and networks do is taken from public
figures, which stand below. From both follows the share of a step in which each resource is busy, at 8 to 1,000 GPUs: a
step's prompts grow with the GPUs, 64 each, so its seconds stay the same. A share of 100% is a limit: the GPUs wait.
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench_driver_share import DECODED_A_SECOND, FLOPS, WEIGHTS
from driver_rates import Rates, measure

GPUS = (8, 64, 256, 1000)
PROMPTS_A_GPU, GPUS_A_NODE = 64, 8
LINKS = {"NVLink 4 (450 GB/s)": 450e9, "InfiniBand NDR (400 Gb/s)": 50e9, "100 GbE": 12.5e9}
"""Bytes a second in one direction: NVIDIA's data sheets of H100 and ConnectX-7; the Ethernet's name."""
NETWORK = LINKS["InfiniBand NDR (400 Gb/s)"]
REACHED = 0.8
"""Of a link's bytes a second."""
GATHERED = 4
"""Turns that an engine ends, or gets, in one turn of the loop, where the loop is what all wait for."""
SIZES = {"0.5 B": 0.49e9, "1.5 B": 1.54e9, "3 B": 3.09e9, "7 B": 7.6e9, "14 B": 14.8e9, "32 B": 32.8e9, "70 B": 70.6e9}
"""Weights of Qwen2.5's sizes, and of Llama 3's largest common one."""


def phases(rates: Rates) -> tuple[float, float]:
    """Seconds of sampling and of training, for any number of GPUs."""
    tokens = rates.tokens / rates.prompts * PROMPTS_A_GPU
    return tokens / DECODED_A_SECOND, 8 * WEIGHTS * tokens / FLOPS


def shares(rates: Rates, num_gpus: int) -> dict[str, float]:
    """Resource -> what it is busy with, of the time that there is for it."""
    sampling_s, training_s = phases(rates)
    step_s, times = sampling_s + training_s, num_gpus * PROMPTS_A_GPU / rates.prompts
    turns, columns, num_nodes = rates.turns * times, rates.column_bytes * times, -(-num_gpus // GPUS_A_NODE)
    loop = {
        "dialect, tree, calculator": rates.growing_s * times / sampling_s,
        "routing": rates.routing_s[num_gpus] * turns / sampling_s,
        "calls of Ray actors": rates.actor_turn_s[GATHERED] * turns / sampling_s,
    }
    between = {
        "join, score, metrics": rates.scoring_s * times / step_s,
        "records, tree file": rates.file_s * times / step_s,
        "columns into the object store": columns / rates.put_bytes_a_second / step_s,
    }
    return {
        **{f"event loop: {name}": share for name, share in loop.items()},
        "**event loop of one driver, while engines sample**": sum(loop.values()),
        **{f"between rollouts: {name}": share for name, share in between.items()},
        "**one driver between rollouts**": sum(between.values()),
        "instant asynchronous tools alone, one a turn": rates.tool_s * turns / sampling_s,
        "each rank lays the whole forest out": rates.packing_s * times / step_s,
        "columns to the other nodes, from the driver's link": columns * (num_nodes - 1) / (REACHED * NETWORK) / step_s,
        "weights of 3 B to all nodes, passed on": 2 * SIZES["3 B"] / (REACHED * NETWORK) / step_s,
    }


def report_rates(rates: Rates) -> None:
    """What was measured."""
    rows = {
        "join, score, metrics": f"{rates.tokens / rates.scoring_s / 1e6:.0f} M tokens/s",
        "records and tree file": f"{rates.tokens / rates.file_s / 1e6:.1f} M tokens/s",
        "event loop beside turns: dialect, tree, calculator": f"{rates.turns / rates.growing_s:,.0f} turns/s",
        "an instant asynchronous environment": f"{1 / rates.tool_s:,.0f} steps/s",
        "layout": f"{rates.tokens / rates.packing_s / 1e6:.0f} M tokens/s",
        "a forest's columns": f"{rates.column_bytes / rates.tokens:.1f} bytes a token",
        "into Ray's object store": f"{rates.put_bytes_a_second / 1e9:.1f} GB/s",
        **{
            f"turns of a Ray actor, 2,000 tokens there and 1,000 back, {num} at a time": f"{1 / s:,.0f} turns/s; "
            f"{1 / rates.actor_call_s[num]:,.0f} by a call each"
            for num, s in rates.actor_turn_s.items()
        },
        **{f"routing over {num:,} replicas": f"{1 / s:,.0f} turns/s" for num, s in rates.routing_s.items()},
    }
    print(f"{platform.machine()}, Python {platform.python_version()}; {rates.tokens:,} tokens in {rates.turns:,} turns")
    print("\n| of the driver's CPU | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def report_shares(rates: Rates) -> None:
    """The table of shares."""
    sampling_s, training_s = phases(rates)
    tokens = rates.tokens / rates.prompts * PROMPTS_A_GPU
    print(f"\nA step: {sampling_s:.0f} s of sampling and {training_s:.0f} s of training; {tokens:,.0f} tokens a GPU\n")
    print(f"| resource | {' | '.join(f'{num:,} GPUs' for num in GPUS)} | full at |\n|---|{'---|' * (len(GPUS) + 1)}")
    table = {num: shares(rates, num) for num in GPUS}
    for name in table[GPUS[0]]:
        row = [table[num][name] for num in GPUS]
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in row)} | {full_at(row)} |")


def full_at(row: list[float]) -> str:
    """GPUs at which a share reaches 1, on a straight line between the table's columns."""
    for place in range(1, len(row)):
        if row[place - 1] < 1 <= row[place]:
            part = (1 - row[place - 1]) / (row[place] - row[place - 1])
            return f"{GPUS[place - 1] + part * (GPUS[place] - GPUS[place - 1]):,.0f} GPUs"
    return "before 8 GPUs" if row[0] >= 1 else "beyond 1,000"


def report_weights() -> None:
    """Seconds of a broadcast of bfloat16 weights in pieces, so that every node passes on what it gets."""
    print(f"\n| weights | GB | {' | '.join(LINKS)} |\n|---|---|{'---|' * len(LINKS)}")
    for name, weights in SIZES.items():
        row = " | ".join(f"{2 * weights / (REACHED * rate):.2f} s" for rate in LINKS.values())
        print(f"| {name} | {2 * weights / 1e9:.1f} | {row} |")


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    arguments = parser.parse_args()
    rates = measure(arguments.prompts, GPUS)
    report_rates(rates)
    report_shares(rates)
    report_weights()


if __name__ == "__main__":
    main()
