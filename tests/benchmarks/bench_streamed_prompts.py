"""What a long rollout holds in memory: `python tests/benchmarks/bench_streamed_prompts.py`.

Ten thousand prompts go through `generate`, the function behind `treegrpo rollout`: data file, environment, trees,
journal, scores, tree file and statistics are the real ones; the engine alone is scripted. One prompt in ten has leaves
of one to four thousand tokens. Private memory is read from the kernel every few prompts; `--objects` says which
Python objects there are more of at the end than behind the first thousand prompts.
"""

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.progress import Bar, Reporter

from tests.scripted import ScriptedParts
from tests.tiny import make_tiny_model, make_tiny_tokenizer

LARGE, SMALL = 600, 30
"""Tokens of a turn, about."""
MIB = 2**20


def private_bytes() -> tuple[int, int]:
    """Memory that this process has written, and all that is resident, files of libraries too."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        fields[name] = 1024 * int(value)
    return fields["Private_Dirty:"], fields["Rss:"]


class Watching(Reporter):
    """A reporter whose bar calls back every `every` prompts."""

    def __init__(self, every: int, look: Callable[[int], None]) -> None:
        super().__init__(quiet=True)
        self._every, self._look = every, look

    @contextmanager
    def bar(self, *_: Any, **__: Any) -> Iterator[Bar]:
        reporter, done = self, 0

        class Counting(Bar):
            def advance(self, count: int = 1, note: str = "") -> None:
                nonlocal done
                done += count
                if done % reporter._every == 0:
                    reporter._look(done)

        yield Counting()


def settings_of(folder: Path, num_prompts: int) -> Config:
    """Trees of two first chains and four expansions, six leaves a prompt, with the calculator."""
    rows = ({"question": f"What is {number} + {number % 7}?", "answer": str(number)} for number in range(num_prompts))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_config(
        {
            "output_dir": str(folder / "run"),
            "model": {"path": str(make_tiny_model(folder / "model"))},
            "data": {"train": str(folder / "questions.jsonl")},
            "environment": {"name": "calculator"},
            "reward": {"functions": ["tests.scripted:even_digits"]},
            "rollout": {"num_trees": 2, "num_expansions": 2, "num_rounds": 1, "max_turns": 6, "max_turn_tokens": 4096},
            "sampler": {"engine": "transformers"},
        }
    )


def stream(folder: Path, num_prompts: int, large_share: float, reporter: Reporter, suffix: str = ".jsonl") -> None:
    """Roll out."""
    every = round(1 / large_share) if large_share else num_prompts + 1
    parts = ScriptedParts(make_tiny_tokenizer(), lambda number: LARGE if number % every == 0 else SMALL)
    generate(settings_of(folder, num_prompts), folder / f"trees{suffix}", reporter, parts=parts)


def live_objects() -> Counter[str]:
    """How many objects of each type the collector knows."""
    gc.collect()
    return Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())


def main() -> None:
    """Stream, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--large-share", type=float, default=0.1)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--suffix", default=".jsonl", choices=[".jsonl", ".jsonl.zst"])
    parser.add_argument("--objects", action="store_true")
    arguments = parser.parse_args()
    seen: dict[int, int] = {}
    objects: dict[int, Counter[str]] = {}
    start = time.monotonic()

    def look(done: int) -> None:
        seen[done], resident = private_bytes()
        if arguments.objects and done >= 1000:
            objects[done] = live_objects()
        grown = seen[done] - seen[1000] if done >= 1000 else 0
        print(
            f"| {done:,} | {time.monotonic() - start:.0f} | {seen[done] / MIB:.1f} | {resident / MIB:.1f} | "
            f"{grown / MIB:+.1f} |",
            flush=True,
        )

    print(f"{platform.machine()}, Python {platform.python_version()}\n")
    print("| prompts | seconds | private MiB | resident MiB | since the first 1,000 |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        reporter = Watching(arguments.every, look)
        stream(Path(folder), arguments.prompts, arguments.large_share, reporter, arguments.suffix)
        written = sum(path.stat().st_size for path in Path(folder).glob("trees*"))
        print(f"\n{written / MIB:,.0f} MiB of trees; most grown: {(max(seen.values()) - seen[1000]) / MIB:.1f} MiB")
    if objects:
        first, last = objects[min(objects)], objects[max(objects)]
        for name, count in (last - first).most_common(25):
            print(f"{count:8,}  {name}")


if __name__ == "__main__":
    main()
