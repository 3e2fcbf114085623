"""Trees and chains on the geography task -> exact match at equal generated tokens, and at equal time.

    python examples/geography/make.py runs/geography
    python tests/benchmarks/bench_tree_vs_chain.py runs/geography runs/bench --seeds 0 1 2

Both arms train from the same policy, with the same settings, on as many leaves a question; a tree shares what
its leaves have in common. A run that is finished is not run again, so the command can be stopped and repeated.
Exact match is greedy, on the held-out questions, every few steps; between two evaluations it is interpolated.
Time is that of the steps alone: rollout, training, and new weights to the engine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "geography"
SETTINGS = {"main": "tree.toml", "sparse": "sparse.toml"}
"""Questions of one to three searches, and of three and four, where a poor policy is seldom rewarded."""
ARMS = {"tree": [], "chain": ["rollout.num_trees=6", "rollout.num_rounds=0"]}


def train(world: Path, output: Path, setting: str, arm: str, seed: int, steps: int, eval_steps: int) -> None:
    """Train one arm, unless that was done before."""
    if (output / f"checkpoint-{steps}").exists():
        return
    data = world / "sparse" if setting == "sparse" else world
    command = [sys.executable, "-m", "treegrpo_cli", "train", str(EXAMPLE / SETTINGS[setting]), "--quiet"]
    command += [
        f"seed={seed}",
        f"output_dir={output}",
        f"model.path={world / 'model'}",
        f"data.train={data / 'train.jsonl'}",
        f"data.eval={data / 'eval.jsonl'}",
        f"environment.options.corpus={world / 'corpus.jsonl'}",
        f"train.num_steps={steps}",
        f"train.eval_steps={eval_steps}",
        "train.save_trees=false",
        "optimizer.schedule=constant",  # so that a point on the way is no unfinished run
        *ARMS[arm],
    ]
    if output.exists():
        command.append("--resume")
    subprocess.run(command, check=True)


def curve(output: Path) -> np.ndarray:
    """Return rows of (generated tokens so far, seconds so far, exact match), one an evaluation."""
    tokens = seconds = 0.0
    points = []
    for line in (output / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        tokens += row.get("tree/generated_tokens", 0)
        seconds += row.get("step_time", 0)
        if "eval/exact_match" in row:
            points.append((tokens, seconds, row["eval/exact_match"]))
    return np.array(points)


def at_budget(curves: dict[str, list[np.ndarray]], axis: int) -> Iterator[tuple[float, dict[str, list[float]]]]:
    """Yield (budget, arm -> exact match of each seed) at half and all of what every run has spent."""
    spent = min(points[-1, axis] for arm in curves.values() for points in arm)
    for budget in (spent / 2, spent):
        yield (
            budget,
            {arm: [float(np.interp(budget, p[:, axis], p[:, 2])) for p in runs] for arm, runs in curves.items()},
        )


def table(world: Path, runs: Path, setting: str, seeds: Sequence[int]) -> str:
    """Return a table in Markdown of one setting."""
    curves = {arm: [curve(runs / f"{setting}-{arm}-{seed}") for seed in seeds] for arm in ARMS}
    before = mean(points[0, 2] for arm in curves.values() for points in arm)
    lines = [f"**{setting}**: before training {before:.2f}", "", "| budget | tree | chain |", "|---|---|---|"]
    for axis, unit in ((0, "generated tokens"), (1, "s")):
        for budget, values in at_budget(curves, axis):
            cells = [f"{' '.join(f'{v:.2f}' for v in values[arm])} (mean {mean(values[arm]):.2f})" for arm in ARMS]
            lines.append(f"| {budget:,.0f} {unit} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not trained yet, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("world", type=Path, help="directory that make.py wrote")
    parser.add_argument("runs", type=Path, help="where the runs go")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60, help="of a tree run")
    parser.add_argument("--chain-steps", type=int, default=45, help="of a chain run, whose steps generate more")
    parser.add_argument("--eval-steps", type=int, default=15)
    options = parser.parse_args()
    steps = {"tree": options.steps, "chain": options.chain_steps}
    for setting in options.settings:
        for seed in options.seeds:
            for arm in ARMS:
                output = options.runs / f"{setting}-{arm}-{seed}"
                train(options.world, output, setting, arm, seed, steps[arm], options.eval_steps)
        print(table(options.world, options.runs, setting, options.seeds), end="\n\n")


if __name__ == "__main__":
    main()
