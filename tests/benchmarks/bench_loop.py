"""What a call costs while an engine steps: `python tests/benchmarks/bench_loop.py`.

A simulated engine sleeps through its steps, as one does that waits for its GPU, and one request keeps it
stepping all the time. Meanwhile calls follow each other: a search over HTTP, on a server in a process of its
own on this machine; a plain function; a timer. Each is compared with the same call beside an idle engine.
"""

import argparse
import asyncio
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from treegrpo_cli.envs.http_retriever import HTTPRetriever
from treegrpo_cli.samplers.stepping import Request, SteppedSampler
from treegrpo_cli.types import Completion, SamplingParams
from treegrpo_cli.user_code import call

NUM_CALLS = 40
STEPS_S = (0.001, 0.02, 0.05)
TIMER_S = 0.005


class SleepingSampler(SteppedSampler):
    """An engine that decodes one token a step, and takes `step_s` for that."""

    name = "sleeping"

    def __init__(self, step_s: float) -> None:
        super().__init__(max_model_len=10**9)
        self.step_s = step_s
        self.running: dict[str, int] = {}

    def add(self, request: Request) -> None:
        self.running[request.request_id] = request.params.max_tokens

    def drop(self, request_id: str) -> None:
        self.running.pop(request_id, None)

    def step(self) -> list[tuple[str, Completion]]:
        time.sleep(self.step_s)
        self.running = {request_id: left - 1 for request_id, left in self.running.items()}
        ended = [request_id for request_id, left in self.running.items() if not left]
        for request_id in ended:
            del self.running[request_id]
        return [(request_id, Completion([1], [0.0], "", "length")) for request_id in ended]

    def weight_shapes(self) -> dict[str, Any]:
        return {}

    def load_weights(self, weights: list[Any]) -> None:
        pass

    def free(self) -> None:
        pass


def quick_function(x: int) -> int:
    return x + 1


async def seconds_of(make: Callable[[], Any]) -> float:
    """The median of calls one behind the other, seconds; a tool is called with a time limit."""
    seen = []
    for _ in range(NUM_CALLS):
        start = time.perf_counter()
        await call(make, timeout_s=30.0)
        seen.append(time.perf_counter() - start)
    return statistics.median(seen)


async def beside(step_s: float, make: Callable[[], Any]) -> tuple[float, float, int]:
    """Return seconds a call beside an idle engine and beside a busy one, and the steps that the busy one took."""
    await call(make)
    idle = await seconds_of(make)
    sampler = SleepingSampler(step_s)
    endless = asyncio.create_task(sampler.sample([1], SamplingParams(max_tokens=10**9), 0))
    await asyncio.sleep(3 * step_s)
    sampler.take_counts()
    busy = await seconds_of(make)
    steps = sampler.take_counts().num_steps
    endless.cancel()
    await asyncio.gather(endless, return_exceptions=True)
    return idle, busy, steps


async def turns_with_instant_tools(step_s: float) -> tuple[float, int]:
    """Seconds and steps of 32 chains of 8 turns of 6 to 13 tokens, each followed by an instant tool."""
    sampler = SleepingSampler(step_s)

    async def chain(number: int) -> None:
        for turn in range(8):
            await sampler.sample([1], SamplingParams(max_tokens=6 + (number * 7 + turn * 3) % 8), 0)
            await call(quick_function, turn, timeout_s=30.0)

    start = time.perf_counter()
    await asyncio.gather(*(chain(number) for number in range(32)))
    return time.perf_counter() - start, sampler.take_counts().num_steps


def main() -> None:
    """Start the server, print the tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as corpus:
        corpus.write(json.dumps({"contents": "Lisbon\nLisbon is the capital of Portugal."}) + "\n")
        corpus.flush()
        command = [sys.executable, "-m", "treegrpo_cli.envs.retrieval", "--port", "0", "--corpus", corpus.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].strip()
            try:
                report(url)
            finally:
                server.terminate()


def report(url: str) -> None:
    """Print both tables."""
    retriever = HTTPRetriever(url)
    search = functools.partial(retriever.retrieve, ["capital of Portugal"], 1)

    async def own_search() -> None:
        await search()

    calls = {
        "built-in HTTP search": search,
        "the same as a user's async tool": own_search,
        "a user's plain function": functools.partial(quick_function, 1),
        "a user's timer of 5 ms": functools.partial(asyncio.sleep, TIMER_S),
    }
    print(
        "| call | step (ms) | engine idle (ms) | engine busy (ms) | beyond its own time (steps) | steps during a call |"
    )
    print("|---|---|---|---|---|---|")
    for name, make in calls.items():
        for step_s in STEPS_S:
            idle, busy, steps = asyncio.run(beside(step_s, make))
            beyond = (busy - idle) / step_s
            print(
                f"| {name} | {1000 * step_s:.0f} | {1000 * idle:.1f} | {1000 * busy:.1f} | {beyond:.2f} | "
                f"{steps / NUM_CALLS:.2f} |",
                flush=True,
            )
    print("\n| instant tools, step (ms) | wall (s) | steps |\n|---|---|---|")
    for step_s in STEPS_S:
        runs = [asyncio.run(turns_with_instant_tools(step_s)) for _ in range(5)]
        wall_s, steps = statistics.median(wall_s for wall_s, _ in runs), runs[0][1]
        print(f"| {1000 * step_s:.0f} | {wall_s:.2f} | {steps} |", flush=True)


if __name__ == "__main__":
    main()
