"""Steps in turns against steps that overlap: `python tests/benchmarks/bench_overlap.py`.

Real parts: the loop, the vLLM engine on the tests' tiny model, trees, tools that answer after a log-normal while (a
function of the turn alone), weights that are sent after each step. Simulated: the update, which sleeps as long as the
rollouts of a first serial run took on average, and then moves every weight a little. Runs take turns, so that all meet
the same machine; a ratio is of runs that stood next to each other.
"""

import argparse
import asyncio
import contextlib
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
import orjson
from treegrpo_cli.config.files import make_config
from treegrpo_cli.models.pretrained import load_causal_lm
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.types import Action, Message, StepResult, Task

from tests.tiny import make_tiny_model

SIGMA = 1.0
"""Of the logarithm of a latency: one call in forty takes seven times the median."""
NUDGE = 1e-4


class SlowWorld:
    """Answers every turn after a latency of its own; the state is the text so far."""

    tools = ()

    def __init__(self, median_s: float) -> None:
        self.median_s = median_s

    def reset(self, task: Task) -> tuple[str, list[Message]]:
        return task.question, [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        said = state + action.text
        await asyncio.sleep(self.median_s * math.exp(SIGMA * random.Random(said).gauss(0, 1)))
        return said, StepResult(({"role": "user", "content": "go on"},))


def length(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [len(completion) % 7 / 7 for completion in completions]


class SleepingTrainer:
    """A `StepTrainer` that takes `update_s` for a step, and has real weights that move."""

    dtype = "float32"
    packing_s = 0.0
    trained = Trained()

    def __init__(self, model: Any, update_s: float) -> None:
        self.model, self.update_s, self.step, self.is_whole = model, update_s, 0, True

    def check(self, sampler: Any) -> None:
        pass

    def update(self, forest: Any, scores: Any, prompts: Any = None) -> dict[str, float | str]:
        import torch

        time.sleep(self.update_s)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight += NUDGE * torch.randn_like(weight)
        self.step += 1
        return {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0, "tree/trained_tokens": 1.0}

    def send_weights(self, sampler: Any) -> None:
        sampler.update_weights(Weights.of(self.model.state_dict().items()), self.step)

    def save(self, output_dir: Path, state: dict[str, Any]) -> Path:
        return output_dir

    def load(self, path: Path) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


class BenchParts(Parts):
    """One engine for all runs: it starts once."""

    def __init__(self) -> None:
        self.sampler: Any = None
        self.update_s = 0.0

    def open_trainer(self, config: Any, say: Any, tokenizer: Any) -> Any:
        import torch

        return SleepingTrainer(load_causal_lm(config.model.path, torch.float32), self.update_s)

    def open_sampler(self, config: Any, log_path: Any, say: Any, trained: Any = None) -> Any:
        if self.sampler is None:
            self.sampler = super().open_sampler(config, Path(os.devnull), say, trained)
            self.end, self.sampler.close = self.sampler.close, lambda: None
        return self.sampler


def settings(folder: Path, options: argparse.Namespace, max_staleness: int, num_steps: int) -> dict[str, Any]:
    here = Path(__file__).resolve()
    return {
        "output_dir": str(folder),
        "model": {"path": str(options.model), "device": "cpu"},
        "data": {"train": str(options.questions)},
        "environment": {
            "name": f"{here}:SlowWorld",
            "options": {"median_s": options.tool_s},
            "max_concurrent_tools": 1024,
        },
        "reward": {"functions": [f"{here}:length"]},
        "rollout": {
            "num_trees": 2,
            "num_expansions": 2,
            "num_rounds": 2,
            "max_turns": 3,
            "max_prompt_tokens": 128,
            "max_turn_tokens": options.turn_tokens,
            "max_observation_tokens": 32,
            "max_live_trees": options.live_trees,
        },
        "sampler": {"engine": "vllm", "max_num_seqs": 256},
        "train": {
            "num_steps": num_steps,
            "prompts_per_step": options.prompts,
            "save_steps": 0,
            "eval_steps": 0,
            "save_trees": False,
        },
        "scale": {"max_staleness": max_staleness},
    }


def run(parts: BenchParts, options: argparse.Namespace, max_staleness: int, num_steps: int) -> list[dict[str, Any]]:
    """Train; return the steps' lines."""
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(settings(Path(folder) / "run", options, max_staleness, num_steps))
        train(config, Reporter(quiet=True), parts=parts)
        lines = (Path(config.output_dir) / "metrics.jsonl").read_bytes().splitlines()
    return [orjson.loads(line) for line in lines]


def wall_s(lines: list[dict[str, Any]]) -> float:
    """Seconds a step over the whole run: the first rollout, beside which nothing trains, and the last update too."""
    return sum(line["step_time"] for line in lines) / len(lines)


def mean(lines: list[dict[str, Any]], name: str) -> float:
    return sum(line.get(name, 0.0) for line in lines) / len(lines)


def main() -> None:
    """Take turns, print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--turn-tokens", type=int, default=24)
    parser.add_argument("--tool-s", type=float, default=0.2)
    parser.add_argument("--live-trees", type=int, default=64)
    parser.add_argument("--staleness", nargs="*", type=int, default=[1, 2])
    options = parser.parse_args()
    parts = BenchParts()
    with tempfile.TemporaryDirectory() as folder:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            options.model = make_tiny_model(Path(folder) / "model")
        options.questions = Path(folder) / "questions.jsonl"
        options.questions.write_text("".join(f'{{"question": "What is number {n}?"}}\n' for n in range(512)))
        parts.update_s = 0.0
        run(parts, options, 0, 2)  # warms up
        parts.update_s = mean(run(parts, options, 0, 6), "time/rollout")
        print(f"update: {parts.update_s:.2f} s, load {os.getloadavg()[0]:.1f}\n")
        columns = "round | staleness | s a step | of serial | rollout | update | weights | age | mixed trees | engine"
        print(f"| {columns} |\n{'|---' * 10}|")
        ratios: dict[int, list[float]] = {number: [] for number in options.staleness}
        for number in range(1, options.rounds + 1):
            serial = run(parts, options, 0, options.steps)
            for max_staleness in (0, *options.staleness):
                lines = run(parts, options, max_staleness, options.steps) if max_staleness else serial
                ratio = wall_s(lines) / wall_s(serial)
                if max_staleness:
                    ratios[max_staleness].append(ratio)
                cells = [mean(lines, f"time/{name}") for name in ("rollout", "update", "weights")]
                cells += [mean(lines, name) for name in ("staleness/mean", "staleness/frac_mixed_trees")]
                shown = " | ".join(f"{cell:.2f}" for cell in [*cells, mean(lines, "engine/busy_share")])
                print(f"| {number} | {max_staleness} | {wall_s(lines):.2f} | {ratio:.2f} | {shown} |", flush=True)
        for max_staleness, found in ratios.items():
            print(f"\nstaleness {max_staleness}: {median(found):.2f} of the serial wall time (median)")
        print(f"load at the end: {os.getloadavg()[0]:.1f}")
        parts.end()


if __name__ == "__main__":
    main()
