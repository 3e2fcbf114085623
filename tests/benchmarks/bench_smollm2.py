"""SmolLM2 on the example's problems, trees and chains, a few seeds -> learning curves and exact match at equal tokens.

    python examples/smollm2/prepare.py runs/smollm2
    python tests/benchmarks/bench_smollm2.py runs/bench-smollm2 --seeds 0 1 2

All runs start from one policy. A run that is finished is not run again, so the command can be stopped and repeated, and
a run that is not there yet is left out of the tables. Exact match is greedy, on the held-out problems, every few steps;
between two evaluations it is interpolated. Time is that of the steps alone: rollout, training, weights to the engine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
ARMS = {"tree": ["tree.toml"], "chain": ["chains.toml", "train.num_steps=16", "train.eval_steps=4"]}
"""A chain's step generates about a quarter more tokens, and gets as many steps fewer."""

Record = dict[str, Any]


def train(output: Path, arm: str, seed: int) -> None:
    """Train one arm, unless that was done before."""
    if list(output.glob("checkpoint-*")):
        return
    settings, *overrides = ARMS[arm]
    command = [sys.executable, "-m", "treegrpo_cli", "train", str(EXAMPLE / settings), "--quiet"]
    subprocess.run([*command, f"seed={seed}", f"output_dir={output}", *overrides], check=True)


def records_of(output: Path) -> list[Record]:
    """Return the run's metrics, each with the tokens and seconds spent until then."""
    tokens = seconds = 0.0
    records = []
    for line in (output / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        tokens += record.get("tree/generated_tokens", 0)
        seconds += record.get("step_time", 0)
        records.append(record | {"tokens": tokens, "seconds": seconds})
    return records


def curve(records: Sequence[Record]) -> Iterator[str]:
    """Yield the rows of a learning curve: at each evaluation, and the mean of the steps since the one before."""
    since: list[Record] = []
    for record in records:
        if "reward" in record:
            since.append(record)
        if "eval/exact_match" in record:
            match, low, high = (record[f"eval/exact_match{end}"] for end in ("", "_low", "_high"))
            reward, entropy = (f"{mean(r[name] for r in since):.2f}" if since else "" for name in ("reward", "entropy"))
            spent = f"{record['tokens']:,.0f} | {record['seconds']:.0f}"
            yield f"| {record['step']} | {reward} | {entropy} | {match:.3f} ({low:.3f} to {high:.3f}) | {spent} |"
            since = []


def at_budget(runs: dict[str, list[list[Record]]]) -> Iterator[tuple[float, dict[str, list[float]]]]:
    """Yield (generated tokens, arm -> exact match of each seed) at half and all of what every run has generated."""
    spent = min(records[-1]["tokens"] for arm in runs.values() for records in arm)
    for budget in (spent / 2, spent):
        yield budget, {arm: [_interpolated(records, budget) for records in runs[arm]] for arm in runs}


def _interpolated(records: Sequence[Record], budget: float) -> float:
    points = [(record["tokens"], record["eval/exact_match"]) for record in records if "eval/exact_match" in record]
    return float(np.interp(budget, *zip(*points, strict=True)))


def tables(runs: dict[str, dict[int, list[Record]]]) -> Iterator[str]:
    """Yield the curves of all runs and the comparison of the seeds that both arms have, in Markdown."""
    for arm, of_seeds in runs.items():
        for seed, records in of_seeds.items():
            yield f"**{arm}, seed {seed}**\n"
            yield "| step | reward in training | entropy, nats | held-out exact match | generated tokens | seconds |"
            yield "|---|---|---|---|---|---|"
            yield from curve(records)
            yield ""
    seeds = sorted(set.intersection(*(set(of_seeds) for of_seeds in runs.values())))
    if not seeds:
        return
    both = {arm: [of_seeds[seed] for seed in seeds] for arm, of_seeds in runs.items()}
    yield "| generated tokens | tree | chain |\n|---|---|---|"
    for budget, values in at_budget(both):
        cells = [f"{' '.join(f'{v:.2f}' for v in values[arm])} (mean {mean(values[arm]):.2f})" for arm in ARMS]
        yield f"| {budget:,.0f} | {cells[0]} | {cells[1]} |"


def main() -> None:
    """Train what is not trained yet, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="where the runs go")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--tables", action="store_true", help="of what is trained: train nothing")
    options = parser.parse_args()
    for seed in options.seeds:
        for arm in () if options.tables else options.arms:
            train(options.runs / f"{arm}-{seed}", arm, seed)
    folders = {arm: {seed: options.runs / f"{arm}-{seed}" for seed in options.seeds} for arm in ARMS}
    runs = {
        arm: {seed: records_of(folder) for seed, folder in of_seeds.items() if list(folder.glob("checkpoint-*"))}
        for arm, of_seeds in folders.items()
    }
    print("\n".join(tables(runs)))


if __name__ == "__main__":
    main()
