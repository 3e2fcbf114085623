"""Both samplers on a tiny model -> tokens per second, and how they compare.

Interleaved in one process, so that both meet the same machine: `python tests/benchmarks/bench_samplers.py`.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.types import SamplingParams

from tests.tiny import make_tiny_model

CONCURRENT = 64
ROUNDS = 5
PARAMS = SamplingParams(max_tokens=128, stop=("</answer>",))


def tokens_per_s(sampler: Any, seed: int) -> float:
    """Sample one turn of every prompt at once; return generated tokens a second."""
    question = sampler.tokenizer.encode("What is the capital of the country where the author was born? ")
    contexts = [[*question, *sampler.tokenizer.encode(str(number))] for number in range(CONCURRENT)]

    async def everything() -> list[Any]:
        requests = (sampler.sample(context, PARAMS, seed + i) for i, context in enumerate(contexts))
        return await asyncio.gather(*requests)

    start = time.perf_counter()
    completions = asyncio.run(everything())
    return sum(len(each.token_ids) for each in completions) / (time.perf_counter() - start)


def main() -> None:
    """Start both, warm them up, take turns, print a table."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_tiny_model(folder, hidden=128, layers=2)
        settings = {"dtype": "float32", "device": "cpu", "max_model_len": 0, "seed": 0}
        started = {
            engine: make_sampler(
                SamplerConfig(engine=engine, max_num_seqs=CONCURRENT),
                str(path),
                **settings,
                log_path=path / "engine.log",
            )
            for engine in ("transformers", "vllm")
        }
        rates: dict[str, list[float]] = {engine: [] for engine in started}
        for round_ in range(1 + ROUNDS):
            for engine, sampler in started.items():
                rate = tokens_per_s(sampler, seed=1000 * round_)
                rates[engine] += [rate] if round_ else []
        for sampler in started.values():
            sampler.close()
    table = Table("sampler", "tokens/s (median)", "lowest", "highest", "ratio")
    base = statistics.median(rates["transformers"])
    for engine, seen in rates.items():
        median = statistics.median(seen)
        table.add_row(engine, f"{median:,.0f}", f"{min(seen):,.0f}", f"{max(seen):,.0f}", f"{median / base:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
