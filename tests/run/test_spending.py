"""What a run has spent ends it, and says when it is evaluated; a resumed run counts on from where it was."""

import itertools
from pathlib import Path
from typing import Any

import orjson
import pytest
from treegrpo_cli.config import BudgetConfig
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import FileError
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.spending import Spending, Spent, read_metrics, read_spending
from treegrpo_cli.train.checkpoint import checkpoints

from tests.runs import small_run


def lines_of(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (Path(settings["output_dir"]) / "metrics.jsonl").read_bytes().splitlines()]


def steps_of(settings: dict[str, Any]) -> list[tuple[int, float]]:
    """(step, generated tokens so far) of each step."""
    steps = [line for line in lines_of(settings) if "step_time" in line]
    totals = itertools.accumulate(line["tree/generated_tokens"] for line in steps)
    return list(zip([line["step"] for line in steps], totals, strict=True))


def evaluated_at(settings: dict[str, Any]) -> list[int]:
    return [line["step"] for line in lines_of(settings) if "eval/num_questions" in line]


def rates_of(settings: dict[str, Any]) -> list[float]:
    return [line["learning_rate"] for line in lines_of(settings) if "learning_rate" in line]


def run(settings: dict[str, Any], *, resume: bool = False) -> None:
    train(make_config(settings), Reporter(quiet=True), resume=resume)


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of four steps, with a rate that falls to the last of them, that is evaluated by what it generates."""
    folder = tmp_path_factory.mktemp("whole")
    settings = small_run(
        folder, tiny_model_dir, optimizer={"schedule": "linear"}, train={"eval_steps": 1, "eval_tokens": 10**9}
    )
    run(settings)
    return settings


def test_tokens_go_before_steps_in_when_a_run_is_evaluated(whole: dict[str, Any]) -> None:
    assert [step for step, _ in steps_of(whole)] == [1, 2, 3, 4]
    assert evaluated_at(whole) == [0, 4]


def test_a_run_ends_after_the_step_that_reaches_its_budget(whole: dict[str, Any], tmp_path: Path) -> None:
    second = steps_of(whole)[1][1]
    every = steps_of(whole)[0][1] // 2
    ended = {
        **whole,
        "output_dir": str(tmp_path / "run"),
        "train": {**whole["train"], "eval_tokens": every},
        "budget": {"run_tokens": second},
    }
    run(ended)
    assert steps_of(ended) == steps_of(whole)[:2]
    assert evaluated_at(ended) == [0, 1, 2]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]

    run({**ended, "budget": {"run_tokens": second + 1}}, resume=True)  # one token more is one step more
    assert steps_of(ended) == steps_of(whole)[:3]
    assert evaluated_at(ended) == [0, 1, 2, 3]
    assert rates_of(ended) == rates_of(whole)[:3]


def test_each_limit_ends_a_run_where_it_is_reached_and_not_before() -> None:
    spent = Spent(tokens=100, tool_calls=7, seconds=2.5)
    for name, value in (("run_tokens", 100), ("run_tool_calls", 7), ("run_seconds", 2.5)):
        assert spent.reaches(BudgetConfig(**{name: value}))
        assert not spent.reaches(BudgetConfig(**{name: value + 1}))
    assert not spent.reaches(BudgetConfig())


def test_a_step_passes_a_multiple_of_the_tokens_wherever_it_ends() -> None:
    spending, passed = Spending(), []
    for tokens in (4, 5, 1, 25, 3):
        spending.add({"tree/generated_tokens": tokens})
        passed.append(spending.passes(10))
    assert passed == [False, False, True, True, False]


def test_spending_is_read_from_the_lines_of_steps_alone(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_spending(file).total == Spent()
    step = {"step": 1, "step_time": 1.5, "tree/generated_tokens": 30.0, "tree/num_tool_calls": 2.0}
    records = [{"step": 0, "eval/f": 0.5}, step, {**step, "step": 2}, {"step": 2, "eval/f": 0.6}]
    file.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records) + b'{"step": 3, "step_t')
    spending = read_spending(file)
    assert spending.total == Spent(60, 4, 3.0)
    assert spending.before_last == Spent(30, 2, 1.5)
    assert spending.total.all == (60, 4, 3.0)


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1.0}'])
def test_a_line_that_is_no_line_of_metrics_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 0}}\n{line}\n')
    with pytest.raises(FileError, match=r"metrics.jsonl:2: "):
        read_metrics(file)
