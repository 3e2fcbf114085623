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
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.timings import Timings
from treegrpo_cli.rollout.tree import Player, Prompt, open_sampler
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


def grow(runner: asyncio.Runner, player: Player, num_prompts: int) -> tuple[float, Timings, list[Any]]:
    """Grow all trees; return seconds, timings and the trees' nodes."""

    async def work() -> list[Any]:
        prompts = (Prompt(n, f"p{n:03d}", Task(f"What is number {n}?")) for n in range(num_prompts))
        nodes = {}
        async with aclosing(collect(player, prompts, player.config.rollout.num_trees)) as groups:
            async for grown in groups:
                assert not grown.failures, grown.failures
                nodes[grown.prompt.prompt_id] = [
                    [node["token_ids"] for node in tree_record(tree).nodes] for tree in grown.trees
                ]
        return [nodes[key] for key in sorted(nodes)]

    player.take_timings()
    start = time.perf_counter()
    nodes = runner.run(work())
    return time.perf_counter() - start, player.take_timings(), nodes


def main() -> None:
    """Take turns, print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turn-tokens", type=int, default=48)
    parser.add_argument("--stop", nargs="*", default=["e"])
    parser.add_argument("--tools", nargs="*", default=list(MEDIANS_S))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            model = make_tiny_model(folder)
        sampler = open_sampler(config_for(model, 0.0, options), Path(folder) / "engine.log", print)
        shape = f"2 trees each (N 2, L 2, up to 4 turns of {options.turn_tokens} tokens)"
        print(f"{sampler.name}, {options.prompts} prompts, {shape}")
        print("| tools | schedule | wall (s) | engine (s) | steps | ms a step | tokens | free over lock-step |")
        print("|---|---|---|---|---|---|---|---|")
        for name in options.tools:
            world = World(config_for(model, MEDIANS_S[name], options), sampler.tokenizer)
            world.dialect.stop = tuple(options.stop)  # turns of many lengths
            seen: dict[str, list[tuple[float, Timings]]] = {schedule: [] for schedule in SCHEDULES}
            grown: dict[str, list[Any]] = {}
            for repeat in range(options.repeats + 1):
                for schedule in SCHEDULES if repeat % 2 else SCHEDULES[::-1]:
                    config = config_for(model, MEDIANS_S[name], options)
                    config = config.model_copy(
                        update={"rollout": config.rollout.model_copy(update={"schedule": schedule})}
                    )
                    wall_s, timings, grown[schedule] = grow(runner, Player(world, sampler, config), options.prompts)
                    seen[schedule] += [(wall_s, timings)] if repeat else []
                assert grown["free"] == grown["lock-step"], "the schedules grew different trees"
            walls = {schedule: statistics.median(wall_s for wall_s, _ in runs) for schedule, runs in seen.items()}
            for schedule, runs in seen.items():
                engine_s = statistics.median(timings.engine_s for _, timings in runs)
                steps = statistics.median(timings.num_engine_steps for _, timings in runs)
                ratio = f"{walls['lock-step'] / walls['free']:.2f}" if schedule == "free" else ""
                print(
                    f"| {name} | {schedule} | {walls[schedule]:.2f} | {engine_s:.2f} | {steps:.0f} | "
                    f"{1000 * engine_s / steps:.2f} | {runs[0][1].generated_tokens} | {ratio} |",
                    flush=True,
                )
        sampler.close()


if __name__ == "__main__":
    main()
