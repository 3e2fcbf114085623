"""What the driver takes for each of its duties, measured one by one: `bench_projection.py` reads it.

CPU seconds, not seconds of the wall, and the least of three runs where they are short: other work counts little.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench_driver_share import PARTS as STEP_PARTS
from bench_driver_share import MeasuredParts, Stopwatches, settings_of
from treegrpo_cli.config.files import make_config
from treegrpo_cli.envs.calls import step_with_retries
from treegrpo_cli.run import loop
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers.routing import RoutedSampler
from treegrpo_cli.scale.engine_actor import EngineActor
from treegrpo_cli.scale.turn_calls import TurnCalls
from treegrpo_cli.types import Action, Completion, SamplingParams, StepResult

PATH_TOKENS, CALLS, REPEATS = 4000, 4000, 3
ENDING = (1, 4, 16)
"""Turns of an engine that end at a time."""


@dataclass(frozen=True)
class Rates:
    """CPU seconds of the driver's main thread, and what they are for."""

    prompts: int
    tokens: int
    turns: int
    scoring_s: float
    """Join, scores, metrics: a step."""
    file_s: float
    growing_s: float
    """The event loop beside all turns of a step; tools of a calculator included."""
    packing_s: float
    column_bytes: int
    routing_s: dict[int, float]
    """A turn, by replicas."""
    tool_s: float
    """An instant asynchronous environment, a step of it."""
    actor_turn_s: dict[int, float]
    """A turn of an engine's actor, by how many end at a time."""
    actor_call_s: dict[int, float]
    """The same where each turn has a call of its own."""
    put_bytes_a_second: float


def cpu_seconds(work: Callable[[], Any], clock: Callable[[], float] = time.thread_time) -> float:
    """Seconds of the main thread's CPU, or of another clock."""
    start = clock()
    work()
    return clock() - start


def measure_step(num_prompts: int) -> dict[str, Any]:
    """Grow and finish steps as `bench_driver_share` does."""
    watches, parts = Stopwatches(), MeasuredParts(PATH_TOKENS // 4, "lay out")
    with tempfile.TemporaryDirectory() as folder, watches.on(*STEP_PARTS):
        loop.train(settings_of(Path(folder), num_prompts, 1), Reporter(quiet=True), parts=parts)
    cpu = {part: float(seconds[1]) for part, seconds in watches.seconds.items()}
    trainer = parts.measured
    scoring = ("join", "score", "learned prompts", "tree metrics", "run metrics")
    return {
        "tokens": trainer.num_tokens,
        "prompts": num_prompts,
        "turns": parts.sampler.num_turns,
        "scoring_s": sum(cpu[part] for part in scoring),
        "file_s": cpu["tree file"],
        "growing_s": cpu["grow"] - parts.sampler.cpu_seconds,
        "packing_s": float(trainer.seconds["lay out"][1]),
        "column_bytes": trainer.column_bytes,
    }


def routing_seconds(num_replicas: int, num_waiting: int = 64) -> float:
    """A turn of a sampler over replicas that answer at once, `num_waiting` turns a replica in flight."""
    nothing = Completion([1], [0.0], "", "stop")

    async def sample(*_: Any) -> Completion:
        await asyncio.sleep(0)
        return nothing

    fields = {"max_model_len": 1 << 20, "keeps_prefixes": True, "takes_adapter": False, "sample": sample}
    replicas: Any = [SimpleNamespace(name=f"engine {number}", **fields) for number in range(num_replicas)]
    sampler = RoutedSampler("fakes", replicas, lambda weights, version: None)  # type: ignore[arg-type, return-value]
    params, context = SamplingParams(max_tokens=1000), np.zeros(2000, dtype=np.uint32)

    async def chain(key: int) -> None:
        for turn in range(4):
            await sampler.sample(context, replace(params, prefix_key=key // 6), turn)

    async def work() -> None:
        await asyncio.gather(*(chain(key) for key in range(num_chains)))

    num_chains = max(min(num_replicas * num_waiting, CALLS), CALLS // 4)
    return min(cpu_seconds(lambda: asyncio.run(work())) for _ in range(REPEATS)) / (4 * num_chains)


def tool_seconds() -> float:
    """A step of an environment that answers at once."""

    class Instant:
        tools = ()

        async def step(self, state: int, action: Action) -> tuple[int, StepResult]:
            return state + 1, StepResult(({"role": "tool", "content": "57"},), num_tool_calls=1)

    config, environment = make_config({}).environment, Instant()

    async def chain() -> None:
        for state in range(10):
            await step_with_retries(environment, state, Action("x"), config)  # type: ignore[arg-type]

    async def work() -> None:
        await asyncio.gather(*(chain() for _ in range(CALLS // 10)))

    return min(cpu_seconds(lambda: asyncio.run(work())) for _ in range(REPEATS)) / CALLS


def measure_ray(column_bytes: int) -> tuple[dict[int, float], dict[int, float], float]:
    """Seconds of the driver's CPU a turn of an engine's actor with a context of 2,000 tokens, 64 in flight, by how many
    end at a time; the same where each turn has a call of its own; bytes a second into the object store.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with tempfile.TemporaryDirectory(prefix="r") as folder:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=2**30,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
            logging_level="error",
        )
        try:
            put = put_rate(ray, min(column_bytes, 2**28))
            pairs = {num: [actor_call_seconds(ray, num, are_gathered=each) for each in (True, False)] for num in ENDING}
            gathered, single = ({num: pair[place] for num, pair in pairs.items()} for place in range(2))
            return gathered, single, put
        finally:
            ray.shutdown()


class SteadySampler:
    """Turns of 1,000 tokens that end `at_a_time`, the oldest first; 400 a second in all."""

    def __init__(self, at_a_time: int) -> None:
        self.num_tokens, self._at_a_time = 0, at_a_time
        self._running: list[asyncio.Future[None]] = []
        self._stepping: asyncio.Task[None] | None = None

    async def sample(self, context: Any, params: SamplingParams, seed: int) -> Completion:
        self._stepping = self._stepping or asyncio.create_task(self._step())
        self._running.append(ended := asyncio.get_running_loop().create_future())
        await ended
        return Completion([*range(1000)], [-0.1 * number for number in range(1000)], "x" * 3000, "stop")

    async def _step(self) -> None:
        while True:
            await asyncio.sleep(self._at_a_time / 400)
            ended, self._running = self._running[: self._at_a_time], self._running[self._at_a_time :]
            for future in ended:
                future.set_result(None)


def actor_call_seconds(ray: Any, at_a_time: int, *, are_gathered: bool = True) -> float:
    """All threads of the driver: Ray's own take part. Else than gathered, each turn has a call of its own."""

    class Engine(EngineActor):
        async def start(self, at_a_time: int) -> None:  # type: ignore[override]
            self.sampler = SteadySampler(at_a_time)  # type: ignore[assignment]

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # this file is none of the actor's modules
    actor = ray.remote(Engine).options(num_cpus=0, max_concurrency=256).remote()
    ray.get(actor.start.remote(at_a_time))
    context, params, numbers = np.zeros(2000, dtype=np.uint32), SamplingParams(max_tokens=1000), count()

    async def chain(calls: TurnCalls) -> None:
        for _ in range(CALLS // 4 // 64):
            await calls.sample(context, params, 0)

    async def work() -> None:
        together = TurnCalls(actor, next(numbers))
        await asyncio.gather(*(chain(together if are_gathered else TurnCalls(actor, next(numbers))) for _ in range(64)))

    best = min(cpu_seconds(lambda: asyncio.run(work()), time.process_time) for _ in range(REPEATS))
    ray.kill(actor)
    return best / (CALLS // 4 // 64 * 64)


def put_rate(ray: Any, num_bytes: int) -> float:
    """Bytes a second, pages that were used before."""
    columns = [np.zeros(num_bytes // 4, dtype=np.uint8) for _ in range(4)]
    ray.get(ray.put(columns))
    return num_bytes / min(cpu_seconds(lambda: ray.put(columns)) for _ in range(3))


def measure(num_prompts: int, replicas: tuple[int, ...]) -> Rates:
    """Measure everything; a minute or two."""
    step = measure_step(num_prompts)
    routing = {num: routing_seconds(num) for num in replicas}
    turn_s, call_s, put = measure_ray(step["column_bytes"])
    return Rates(
        **step,
        routing_s=routing,
        tool_s=tool_seconds(),
        actor_turn_s=turn_s,
        actor_call_s=call_s,
        put_bytes_a_second=put,
    )
