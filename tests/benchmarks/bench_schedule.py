"""Rollouts under both schedules, with slow, quick and instant tools: `python tests/benchmarks/bench_schedule.py`.

A tool's latency is log-normal and a function of the turn alone, so both schedules meet the same ones and must
grow the same trees. They take turns in one process, so that both meet the same machine.
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
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.player import Player, open_sampler
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.timings import Timings
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.types import Action, Message, StepResult, Task

from tests.tiny import make_tiny_model

SIGMA = 1.0
"""Of the logarithm of a latency: one call in forty takes seven times the median."""
MEDIANS_S = {"0.5 s": 0.5, "0.05 s": 0.05, "instant": 0.0}
SCHEDULES = ("free", "lock-step")


class SlowWorld:
    """Answers every turn after a latency of its own; the state is the text so far."""

    tools = ()

    def __init__(self, median_s: float) -> None:
        self.median_s = median_s

    def reset(self, task: Task) -> tuple[str, list[Message]]:
        return task.question, [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        said = state + action.text
        if self.median_s:
            await asyncio.sleep(self.median_s * math.exp(SIGMA * random.Random(said).gauss(0, 1)))
        return said, StepResult(({"role": "user", "content": "go on"},))


def no_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def config_for(model: Path, median_s: float, options: argparse.Namespace) -> Any:
    return make_config(
        {
            "model": {"path": str(model), "device": "cpu"},
            "environment": {
                "name": f"{Path(__file__).resolve()}:SlowWorld",
                "options": {"median_s": median_s},
                "max_concurrent_tools": 1024,
            },
            "reward": {"functions": [f"{Path(__file__).resolve()}:no_reward"]},
            "rollout": {
                "num_trees": 2,
                "num_expansions": 2,
                "num_rounds": 2,
                "max_turns": 4,
                "max_prompt_tokens": 128,
                "max_turn_tokens": options.turn_tokens,
                "max_observation_tokens": 32,
            },
            "sampler": {"engine": options.engine, "max_num_seqs": 256},
        }
    )


@dataclass(frozen=True)
class Run:
    """One rollout: seconds on the clock and of this process, what the player counted, and the trees' tokens."""

    wall_s: float
    cpu_s: float
    timings: Timings
    trees: list[Any]


def grow(runner: asyncio.Runner, player: Player, num_prompts: int) -> Run:
    """Grow all trees."""

    async def work() -> dict[str, list[Tree]]:
        prompts = (Prompt(n, f"p{n:03d}", Task(f"What is number {n}?")) for n in range(num_prompts))
        async with aclosing(collect(player, prompts, player.config.rollout.num_trees)) as groups:
            return {grown.prompt.prompt_id: grown.trees async for grown in groups}

    getattr(player.sampler, "reset_prefix_cache", lambda: None)()
    player.take_timings()
    start, cpu_start = time.perf_counter(), time.process_time()
    groups = runner.run(work())
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    trees = [tree_record(tree).nodes for _, group in sorted(groups.items()) for tree in group]
    tokens = [[node["token_ids"] for node in nodes] for nodes in trees]
    return Run(wall_s, cpu_s, player.take_timings(), tokens)


def with_schedule(config: Config, schedule: str) -> Config:
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"schedule": schedule})})


def compare(runner: asyncio.Runner, sampler: Any, config: Config, options: Any, stop: tuple[str, ...]) -> list[str]:
    """Return the cells of both schedules' rows."""
    world = World(config, sampler.tokenizer)
    world.dialect.stop = stop
    runs: dict[str, list[Run]] = {schedule: [] for schedule in SCHEDULES}
    for repeat in range(options.repeats + 1):
        for schedule in SCHEDULES[:: 1 if repeat % 2 else -1]:
            runs[schedule].append(
                grow(runner, Player(world, sampler, with_schedule(config, schedule)), options.prompts)
            )
        assert runs["free"][-1].trees == runs["lock-step"][-1].trees, "the schedules grew different trees"
    measured = {schedule: of[1:] for schedule, of in runs.items()}

    def ratio(value: Callable[[Run], float]) -> str:
        free, lock_step = (median(map(value, measured[schedule])) for schedule in SCHEDULES)
        return f"{lock_step / free:.2f}"

    rows = []
    for schedule, of in measured.items():
        cells = [
            f"{median(run.wall_s for run in of):.2f}",
            f"{median(run.cpu_s for run in of):.2f}",
            f"{median(run.timings.engine_s for run in of):.2f}",
            f"{median(run.timings.num_engine_steps for run in of):.0f}",
            f"{of[0].timings.generated_tokens}",
            ratio(lambda run: run.wall_s) if schedule == "free" else "",
            ratio(lambda run: run.cpu_s) if schedule == "free" else "",
        ]
        rows.append(f"{schedule} | {' | '.join(cells)}")
    return rows


def main() -> None:
    """Take turns, print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--turn-tokens", type=int, default=32)
    parser.add_argument("--tools", nargs="*", default=list(MEDIANS_S))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            model = make_tiny_model(folder)
        sampler = open_sampler(config_for(model, 0.0, options), Path(folder) / "engine.log", print)
        print(f"{sampler.name}, {options.prompts} prompts, 2 trees each (N 2, L 2, up to 4 turns)\n")
        print(
            "| tools | turns | schedule | wall (s) | CPU (s) | engine (s) | steps | tokens | wall ratio | CPU ratio |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for name in options.tools:
            for turns, stop in ((f"1 to {options.turn_tokens} tokens", ("e",)), (f"all of {options.turn_tokens}", ())):
                for row in compare(runner, sampler, config_for(model, MEDIANS_S[name], options), options, stop):
                    print(f"| {name} | {turns} | {row} |", flush=True)
        sampler.close()


if __name__ == "__main__":
    main()
