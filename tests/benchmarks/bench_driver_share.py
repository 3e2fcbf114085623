"""What the driver itself takes of a training step: `python tests/benchmarks/bench_driver_share.py`.

A run of `run.loop.train` with a scripted engine and a trainer that trains nothing: 512 prompts with six leaves each,
about 4,000 tokens a path. The loop, the session and everything they call are the real ones; each part between one
rollout and the next is timed, and with `--profile` the functions below it. The share is of a step of a 3 B model on
eight GPUs, worked out from figures that are printed with it.
"""

import argparse
import cProfile
import platform
import pstats
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run import loop
from treegrpo_cli.run.parts import Say
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.session import Session
from treegrpo_cli.train.batch import layouts

from tests.runs import write_lines
from tests.scripted import NullTrainer, ScriptedParts
from tests.tiny import make_tiny_model, make_tiny_tokenizer

TURNS = 4


class Measured(NullTrainer):
    """Does what the driver does for a trainer: `lay out` for one in its process, `hand over` columns to ranks."""

    def __init__(self, config: Config, work: str) -> None:
        super().__init__()
        self._config, self._work = config, work
        self.seconds: dict[str, NDArray[np.float64]] = {}
        self.num_tokens = self.path_tokens = self.column_bytes = 0

    def update(self, forest: Any, scores: Any, prompts: Any = None) -> dict[str, float | str]:
        self.num_tokens, self.path_tokens = forest.num_tokens, int(forest.leaf_columns()["path_tokens"].sum())
        columns = [*forest.columns().values(), scores.depth, scores.num_leaves, scores.value, scores.advantage]
        self.column_bytes = sum(column.nbytes for column in columns)
        start = now()
        if self._work == "lay out":
            size = self._config.train.prompts_per_step
            packed = layouts(forest, scores, self._config.loss.prefix_weight, size, shared=True, prompts=prompts)
            assert packed[0].weighted_tokens
        else:  # what an object store does: one copy of all columns
            assert sum(len(np.array(column).tobytes()) for column in columns) == self.column_bytes
        self.seconds[self._work] = now() - start
        self.packing_s = float(self.seconds[self._work][0])
        return super().update(forest, scores, prompts)


class MeasuredParts(ScriptedParts):
    """Scripted engine, a trainer that is measured."""

    def __init__(self, turn_tokens: int, work: str) -> None:
        super().__init__(make_tiny_tokenizer(), lambda _: turn_tokens, answers=0.0)
        self._work = work

    def open_trainer(self, config: Config, say: Say, tokenizer: Any) -> Measured:
        self.measured = Measured(config, self._work)
        return self.measured


class Stopwatches:
    """Wall seconds and the main thread's CPU seconds of named functions, where they are called from."""

    def __init__(self) -> None:
        self.seconds: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))

    @contextmanager
    def on(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """While entered, `owner.name` counts as `part`."""
        with ExitStack() as stack:
            for owner, name, part in places:
                stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), part)))
            yield

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = now()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += now() - start

        return timed


def now() -> NDArray[np.float64]:
    """Seconds of the wall and of this thread's CPU."""
    return np.array([time.perf_counter(), time.thread_time()])


PARTS = (
    (loop, "join", "join"),
    (loop, "score", "score"),
    (loop, "learned_prompts", "learned prompts"),
    (loop, "tree_metrics", "tree metrics"),
    (Session, "_run_metrics", "run metrics"),
    (Session, "_write_trees", "tree file"),
    (Session, "_log_completions", "completions"),
    (Session, "finish_step", "finish_step"),
    (Session, "grow", "grow"),
)


def settings_of(folder: Path, num_prompts: int, num_steps: int) -> Config:
    """Two first chains and four expansions a prompt, four turns a path, all trees written."""
    rows = [{"question": f"What is {number} + {number % 7}?", "answer": "1"} for number in range(num_prompts)]
    return make_config(
        {
            "output_dir": str(folder / "run"),
            "model": {"path": str(make_tiny_model(folder / "model"))},
            "data": {"train": write_lines(folder / "questions.jsonl", rows)},
            "environment": {"name": "calculator"},
            "reward": {"functions": ["tests.scripted:even_digits"]},
            "rollout": {"num_trees": 2, "num_expansions": 2, "max_turns": TURNS, "max_turn_tokens": 8192},
            "sampler": {"engine": "transformers"},
            "train": {"num_steps": num_steps, "prompts_per_step": num_prompts, "save_steps": 0, "log_completions": 0},
        }
    )


def step_seconds(num_tokens: int) -> dict[str, float]:
    """Seconds of a step of a 3 B model on eight H100 that sample and then train, by part: the denominator.

    A token is sampled once at `DECODED_A_SECOND` a GPU. It is trained on with 6 FLOP a weight for the gradient and,
    with gradient checkpointing, 2 for a second forward, at `FLOPS` a GPU.
    """
    return {
        "sampling": num_tokens / (NUM_GPUS * DECODED_A_SECOND),
        "training": 8 * WEIGHTS * num_tokens / (NUM_GPUS * FLOPS),
    }


NUM_GPUS, WEIGHTS = 8, 3.1e9
DECODED_A_SECOND = 20_000.0
"""Tokens that one GPU samples. Of Qwen2.5-3B a step reads 6.2 GB of weights and, of 700 sequences of 2,300 tokens on
average in 60 GB of cache, 36,864 bytes a token: 66 GB, 20 ms at the 3.35 TB/s of an H100's data sheet, or 35,000 tokens
a second. A little less than 60% of that is reached.
"""
FLOPS = 0.4 * 989e12
"""Of an H100's 989 TFLOP/s dense in bfloat16, the part that is reached."""


def main() -> None:
    """Run, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4000, help="of a path")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--trainer", default="lay out", choices=["lay out", "hand over"])
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    watches, parts = Stopwatches(), MeasuredParts(arguments.tokens // TURNS, arguments.trainer)
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as name, watches.on(*PARTS):
        config = settings_of(Path(name), arguments.prompts, arguments.steps)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if arguments.profile:
            profile.enable()
        loop.train(config, Reporter(quiet=True), parts=parts)
        profile.disable()
        written = sum(path.stat().st_size for path in Path(name).glob("run/trees/*")) / arguments.steps
    report(parts, watches.seconds, arguments.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory {peak:.2f} GiB, {before:.2f} before the first step; {written / 2**20:.0f} MiB a tree file")
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


def report(parts: MeasuredParts, seconds: dict[str, NDArray[np.float64]], num_steps: int) -> None:
    """Print the step's parts, means over the steps; of what the trainer is given, the last step's."""
    trainer = parts.measured
    per_step = {part: total / num_steps for part, total in seconds.items()}
    growing, finishing = per_step.pop("grow"), per_step.pop("finish_step")
    per_step |= trainer.seconds
    per_step["rest of finish_step"] = finishing - sum(per_step[p] for p in ("run metrics", "tree file", "completions"))
    print(f"{platform.machine()}, Python {platform.python_version()}, mean of {num_steps} steps\n")
    print(f"{trainer.num_tokens:,} tokens a step, {trainer.path_tokens:,} along all paths\n")
    print("| part | s | s of the main thread's CPU |\n|---|---|---|")
    own = sum(per_step.values(), np.zeros(2))
    for part, (wall_s, cpu_s) in (per_step | {"**between rollouts**": own}).items():
        print(f"| {part} | {wall_s:.3f} | {cpu_s:.3f} |")
    print(f"\nwhile engines sample: {growing[1] - parts.sampler.cpu_seconds / num_steps:.1f} s of CPU")
    terms = step_seconds(trainer.num_tokens)
    step_s = sum(terms.values())
    said = " + ".join(f"{value:.0f} s {name}" for name, value in terms.items())
    print(f"step: {said} = {step_s:.0f} s; the driver's own share {own[0] / step_s:.2%}, by CPU {own[1] / step_s:.2%}")


if __name__ == "__main__":
    main()
