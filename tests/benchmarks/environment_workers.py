"""Decoding beside a calculator that computes for 50 ms a call: `python tests/benchmarks/environment_workers.py`.

64 trees live on one engine, and every turn calls the calculator, one call at a time, as one core would. Three arms grow
the same trees in turn, in one process and on one engine: the calculator asleep for 50 ms in a worker (nothing computes
beside the engine), computing in a worker, and computing in the engine's own process (`environment.workers = 0`).
What is compared is the engine's seconds in steps for the same tokens, round by round, with the first arm.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli.types import Action, Message, StepResult, Task

ARMS = {
    "asleep in a worker": {"workers": 1, "options": {"computes": False}},
    "computing in a worker": {"workers": 1, "options": {"computes": True}},
    "computing in the engine's process": {"workers": 0, "options": {"computes": True}},
}
CALL_S = 0.05
NUM_TREES = 64

_one_at_a_time = threading.Lock()


class Calculator:
    """Answers every turn after 50 ms, of sleep or of the processor's time; the state is the text so far."""

    tools = ()

    def __init__(self, computes: bool) -> None:
        self.computes = computes

    def reset(self, task: Task) -> tuple[str, list[Message]]:
        return task.question, [{"role": "user", "content": task.question}]

    def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        with _one_at_a_time:
            if self.computes:
                compute()
            else:
                time.sleep(CALL_S)
        return state + action.text, StepResult(({"role": "user", "content": "go on"},), num_tool_calls=1)


def compute() -> None:
    """Use the processor for 50 ms, and the interpreter's lock with it."""
    end = time.thread_time() + CALL_S
    while time.thread_time() < end:
        sum(range(1000))


def no_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


@dataclass(frozen=True)
class Run:
    """One rollout: seconds on the clock and in the engine's steps, its steps, tokens and calls, and the trees."""

    wall_s: float
    engine_s: float
    num_steps: int
    tokens: int
    calls: int
    trees: list[Any]


def config_for(model: Path, environment: dict[str, Any], options: argparse.Namespace) -> Any:
    from treegrpo_cli.config.files import make_config

    return make_config(
        {
            "model": {"path": str(model), "device": "cpu"},
            "environment": {
                "name": f"{Path(__file__).resolve()}:Calculator",
                "tool_timeout_s": 600,
                **environment,
            },
            "reward": {"functions": [f"{Path(__file__).resolve()}:no_reward"]},
            "rollout": {
                "num_trees": 2,
                "num_expansions": 1,
                "num_rounds": 1,
                "max_turns": 2,
                "max_prompt_tokens": 128,
                "max_turn_tokens": options.turn_tokens,
                "max_observation_tokens": 32,
                "max_live_trees": NUM_TREES,
            },
            "sampler": {"engine": "vllm", "max_num_seqs": 2 * NUM_TREES},
        }
    )


def grow(runner: asyncio.Runner, player: Any) -> Run:
    """Grow all trees."""
    from treegrpo_cli.rollout.collect import collect
    from treegrpo_cli.rollout.records import tree_record
    from treegrpo_cli.rollout.tree import Prompt

    async def work() -> dict[int, Any]:
        prompts = (Prompt.numbered(n, Task(f"What is number {n}?")) for n in range(NUM_TREES // 2))
        async with aclosing(collect(player, prompts, 2)) as groups:
            return {grown.prompt.number: grown.trees async for grown in groups}

    player.sampler.reset_prefix_cache()
    player.take_timings()
    start = time.perf_counter()
    groups = runner.run(work())
    wall_s, timings = time.perf_counter() - start, player.take_timings()
    trees = [tree_record(tree).nodes for _, group in sorted(groups.items()) for tree in group]
    tokens = [[node["token_ids"] for node in nodes] for nodes in trees]
    return Run(
        wall_s, timings.engine_s, timings.num_engine_steps, timings.generated_tokens, timings.num_tool_calls, tokens
    )


def table(runs: dict[str, list[Run]]) -> list[str]:
    """Medians of each arm, and of its ratios to the first arm in the same round."""
    base = next(iter(runs.values()))
    lines = [
        "| calculator | wall (s) | engine (s) | steps | ms a step | tokens | calls | tokens/s | engine ratio | range |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, of in runs.items():
        ratios = [run.engine_s / other.engine_s for run, other in zip(of, base, strict=True)]
        cells = [
            f"{median(run.wall_s for run in of):.2f}",
            f"{median(run.engine_s for run in of):.2f}",
            f"{median(run.num_steps for run in of):.0f}",
            f"{median(1000 * run.engine_s / run.num_steps for run in of):.2f}",
            f"{of[0].tokens}",
            f"{of[0].calls}",
            f"{median(run.tokens / run.engine_s for run in of):.0f}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Take turns, print a table."""
    from treegrpo_cli.models.pretrained import load_tokenizer
    from treegrpo_cli.rollout.player import Player, open_sampler
    from treegrpo_cli.rollout.world import World

    from tests.tiny import make_tiny_model

    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn-tokens", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            model = make_tiny_model(folder)
        configs = {arm: config_for(model, environment, options) for arm, environment in ARMS.items()}
        tokenizer = load_tokenizer(str(model))
        worlds = {arm: World(config, tokenizer) for arm, config in configs.items()}  # before the engine, as in a run
        sampler = open_sampler(next(iter(configs.values())), Path(folder) / "engine.log", print)
        players = {arm: Player(worlds[arm], sampler, configs[arm]) for arm in ARMS}
        for player in players.values():
            player.params = player.params.__class__(max_tokens=options.turn_tokens)
        runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
        for number in range(options.rounds + 1):
            for arm in list(ARMS)[:: 1 if number % 2 else -1]:
                run = grow(runner, players[arm])
                print(f"round {number}, {arm}: {run.wall_s:.2f} s, engine {run.engine_s:.2f} s", file=sys.stderr)
                if number:  # the first one warms up
                    runs[arm].append(run)
        first, *others = (of[-1].trees for of in runs.values())
        assert all(trees == first for trees in others), "the arms grew different trees"
        print(f"{sampler.name}, {NUM_TREES} live trees, {options.rounds} rounds\n")
        print("\n".join(table(runs)))
        for world in worlds.values():
            runner.run(world.close())
        sampler.close()


if __name__ == "__main__":
    main()
