"""A long rollout, and a long run, hold no more at their end than at their beginning."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.tree import Tree
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Bar, Reporter
from treegrpo_cli.types import Completion, SamplingParams, TokenIds

from tests.runs import write_lines
from tests.scripted import ScriptedParts, ScriptedSampler
from tests.tiny import make_tiny_tokenizer

AN_OBJECT = 0.6
"""Of a prompt or a step: what is kept of each is one object at least, and caches and free lists of Python's move by a
few hundred."""


class Weighing(Reporter):
    """A reporter that counts the blocks of memory that Python's objects take whenever so much more is done."""

    def __init__(self, every: int) -> None:
        super().__init__(quiet=True)
        self.every, self.held = every, list[int]()

    @contextmanager
    def bar(self, *_: Any, **__: Any) -> Iterator[Bar]:
        yield _Counting(self)


class _Counting(Bar):
    def __init__(self, reporter: Weighing) -> None:
        self._reporter, self._done = reporter, 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        if self._done % self._reporter.every == 0:
            gc.collect()
            self._reporter.held.append(sys.getallocatedblocks())


@pytest.fixture
def frozen() -> Iterator[None]:
    """What is there already is not looked at again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def settings_of(folder: Path, model: Path, num_prompts: int, **sections: dict[str, Any]) -> Config:
    rows = [{"question": f"What is {number} + 1?", "answer": "1"} for number in range(num_prompts)]
    tables: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(model)},
        "data": {"train": write_lines(folder / "questions.jsonl", rows)},
        "environment": {"name": "calculator"},
        "advantage": {"estimator": "grpo"},
        "reward": {"functions": ["tests.scripted:even_digits"]},
        "rollout": {"num_trees": 1, "num_expansions": 1, "max_turns": 2, "max_live_trees": 2},
        "sampler": {"engine": "transformers"},
    }
    return make_config(tables | {name: tables.get(name, {}) | table for name, table in sections.items()})


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("sections", [{}, {"budget": {"step_tokens": 10**9}}], ids=["each at its pace", "in waves"])
def test_a_rollout_holds_nothing_of_the_prompts_behind_it(
    sections: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    reporter, parts = Weighing(25), ScriptedParts(make_tiny_tokenizer(), lambda _: 20)
    generate(settings_of(tmp_path, tiny_model_dir, 1020, **sections), tmp_path / "trees.jsonl", reporter, parts=parts)
    assert growth(reporter) < AN_OBJECT


@pytest.mark.usefixtures("frozen")
def test_a_run_holds_nothing_of_the_steps_behind_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    reporter, parts = Weighing(10), ScriptedParts(make_tiny_tokenizer(), lambda _: 20)
    steps = {"num_steps": 600, "prompts_per_step": 1, "save_steps": 0, "save_trees": False}
    train(settings_of(tmp_path, tiny_model_dir, 7, train=steps), reporter, parts=parts)
    assert growth(reporter) < AN_OBJECT


def test_nothing_of_a_step_is_held_while_the_next_one_grows(tiny_model_dir: Path, tmp_path: Path) -> None:
    held: dict[int, set[int]] = {}

    class Looking(ScriptedSampler):
        async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
            if self.policy_version not in held:
                gc.collect()
                held[self.policy_version] = {thing.prompt.number for thing in gc.get_objects() if type(thing) is Tree}
            return await super().sample(context, params, seed)

    parts = ScriptedParts(make_tiny_tokenizer(), lambda _: 20)
    parts.sampler = Looking(make_tiny_tokenizer(), lambda _: 20)
    steps = {"num_steps": 3, "prompts_per_step": 2, "save_steps": 0}
    train(settings_of(tmp_path, tiny_model_dir, 7, train=steps), Reporter(quiet=True), parts=parts)
    assert [min(held[step]) // 2 for step in range(3)] == [0, 1, 2]


def growth(reporter: Weighing) -> float:
    """Blocks a prompt or step, from the second quarter to the last, each where it held least."""
    quarter = len(reporter.held) // 4
    return (min(reporter.held[-quarter:]) - min(reporter.held[quarter : 2 * quarter])) / (2 * quarter * reporter.every)
