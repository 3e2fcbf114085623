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
        self.seconds: dict[str, float] = {}
        self.num_tokens = self.path_tokens = 0

    def update(self, forest: Any, scores: Any, prompts: Any = None) -> dict[str, float | str]:
        self.num_tokens, self.path_tokens = forest.num_tokens, int(forest.leaf_columns()["path_tokens"].sum())
        start = time.perf_counter()
        if self._work == "lay out":
            size = self._config.train.prompts_per_step
            packed = layouts(forest, scores, self._config.loss.prefix_weight, size, shared=True, prompts=prompts)
            assert packed[0].weighted_tokens
        else:  # what an object store does: one copy of all columns
            columns = [*forest.columns().values(), scores.depth, scores.num_leaves, scores.value, scores.advantage]
            assert sum(len(np.array(column).tobytes()) for column in columns)
        self.packing_s = self.seconds[self._work] = time.perf_counter() - start
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
    """Seconds of named functions, where they are called from."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """While entered, `owner.name` counts as `part`."""
        with ExitStack() as stack:
            for owner, name, part in places:
                stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), part)))
            yield

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return timed


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


def step_seconds(num_tokens: int, path_tokens: int) -> dict[str, float]:
    """Seconds of a step of a 3 B model on eight H100 that sample and then train, by part: the denominator.

    Sampling: 8 engines of `DECODED_A_SECOND`. Training: 6 FLOP a weight and token for gradients and, with gradient
    checkpointing, 2 for the second forward, at `FLOPS` a GPU reached.
    """
    return {
        "sampling": num_tokens / (NUM_GPUS * DECODED_A_SECOND),
        "training": 8 * WEIGHTS * num_tokens / (NUM_GPUS * FLOPS),
    }


NUM_GPUS, WEIGHTS = 8, 3.1e9
DECODED_A_SECOND = 12_000.0
"""Tokens that one GPU samples."""
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
    print(f"\npeak memory {peak:.2f} GiB, {before:.2f} of it before the first step; {written / 2**20:.0f} MiB a tree file")
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


def report(parts: MeasuredParts, seconds: dict[str, float], num_steps: int) -> None:
    """Print the step's parts, means over the steps."""
    trainer = parts.measured
    per_step = {part: total / num_steps for part, total in seconds.items()}
    growing, finishing = per_step.pop("grow"), per_step.pop("finish_step")
    per_step |= trainer.seconds
    per_step["rest of finish_step"] = finishing - sum(per_step[p] for p in ("run metrics", "tree file", "completions"))
    print(f"{platform.machine()}, Python {platform.python_version()}, mean of {num_steps} steps\n")
    print(f"{trainer.num_tokens:,} tokens a step, {trainer.path_tokens:,} along all paths\n\n| part | s |\n|---|---|")
    for part, value in per_step.items():
        print(f"| {part} | {value:.3f} |")
    own, of = sum(per_step.values()), step_seconds(trainer.num_tokens, trainer.path_tokens)
    step_s = sum(of.values())
    print(f"| **between rollouts** | **{own:.2f}** |")
    print(f"\nwhile engines sample: {growing - parts.sampler.seconds / num_steps:.1f} s of the driver's CPU")
    terms = " + ".join(f"{value:.0f} s {name}" for name, value in of.items())
    print(f"step: {terms} = {step_s:.0f} s; the driver's own share {own / step_s:.1%}")


if __name__ == "__main__":
    main()
