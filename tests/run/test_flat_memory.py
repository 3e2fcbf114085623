"""A long rollout, and a long run, hold no more at their end than at their beginning."""

import gc
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Bar, Reporter

from tests.runs import write_lines
from tests.scripted import ScriptedParts
from tests.tiny import make_tiny_tokenizer

A_PROMPT = 24
"""Bytes: less than the smallest object that Python can keep of one."""


class Weighing(Reporter):
    """A reporter that weighs all that Python holds whenever so much more is done."""

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
            self._reporter.held.append(tracemalloc.get_traced_memory()[0])


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is there already is not looked at again
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.unfreeze()


def settings_of(folder: Path, model: Path, num_prompts: int, **sections: dict[str, Any]) -> Config:
    rows = [{"question": f"What is {number} + 1?", "answer": "1"} for number in range(num_prompts)]
    tables: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(model)},
        "data": {"train": write_lines(folder / "questions.jsonl", rows)},
        "environment": {"name": "calculator"},
        "reward": {"functions": ["tests.scripted:even_digits"]},
        "rollout": {"max_turns": 2, "max_live_trees": 2},
        "sampler": {"engine": "transformers"},
    }
    return make_config(tables | {name: tables.get(name, {}) | table for name, table in sections.items()})


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("sections", [{}, {"budget": {"step_tokens": 10**9}}], ids=["each at its pace", "in waves"])
def test_a_rollout_holds_nothing_of_the_prompts_behind_it(
    sections: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    reporter, parts = Weighing(20), ScriptedParts(make_tiny_tokenizer(), lambda _: 20)
    generate(settings_of(tmp_path, tiny_model_dir, 420, **sections), tmp_path / "trees.jsonl", reporter, parts=parts)
    assert growth(reporter) / 200 < A_PROMPT


@pytest.mark.usefixtures("traced")
def test_a_run_holds_nothing_of_the_steps_behind_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    reporter, parts = Weighing(4), ScriptedParts(make_tiny_tokenizer(), lambda _: 20)
    config = settings_of(tmp_path, tiny_model_dir, 16, train={"num_steps": 80, "prompts_per_step": 2, "save_steps": 0})
    train(config, reporter, parts=parts)
    assert growth(reporter) / 80 < A_PROMPT


def growth(reporter: Weighing) -> int:
    """Bytes from the second quarter to the last, each where it held least: what grows at this moment is left out."""
    quarter = len(reporter.held) // 4
    print(json.dumps(reporter.held))
    return min(reporter.held[-quarter:]) - min(reporter.held[quarter : 2 * quarter])
