"""A run's lines are read as its columns, however they end and whatever they lack."""

import json
from pathlib import Path

import numpy as np
import pytest
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.plots.groups import folders_of, read_groups
from treegrpo_cli.plots.history import AXES, History

from tests.plots.written_runs import evaluation, scored, step, tree_steps, write_run


@pytest.mark.parametrize(
    ("axis", "expected"),
    [("step", [0, 1, 2]), ("tokens", [0, 100, 200]), ("tool-calls", [0, 8, 16]), ("seconds", [0, 2, 4])],
)
def test_an_evaluation_stands_where_the_steps_before_it_have_come_to(
    tmp_path: Path, axis: str, expected: list[float]
) -> None:
    history = History.read(write_run(tmp_path, scored(tree_steps(2))))
    series = history.series("eval/f", axis)
    assert series is not None
    assert (series.x.tolist(), series.y.tolist()) == (expected, [0.1, 0.2, 0.3])
    assert series.low is not None
    assert series.low.tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert set(AXES) == {"step", "tokens", "tool-calls", "seconds"}


def test_a_half_line_of_a_running_or_killed_run_is_left_out(tmp_path: Path) -> None:
    history = History.read(write_run(tmp_path, tree_steps(2), rest='{"step": 3, "rew'))
    assert history.num_steps == 2
    assert history.last["step"] == 2


def test_null_is_a_gap_and_text_is_no_number(tmp_path: Path) -> None:
    lines = [step(1, entropy=0.5, path="dense"), step(2, entropy=None), step(3, entropy=0.25)]
    history = History.read(write_run(tmp_path, lines))
    series = history.series("entropy", "step")
    assert series is not None
    assert [None if np.isnan(y) else y for y in series.y] == [0.5, None, 0.25]
    assert history.series("gone", "step") is None
    with pytest.raises(UserError, match="path: is text"):
        history.check_metric("path")
    with pytest.raises(UserError, match="did you mean 'entropy'"):
        history.check_metric("entrpy")


def test_what_a_resumed_run_put_aside_is_no_part_of_it(tmp_path: Path) -> None:
    write_run(tmp_path / "old-1", tree_steps(9))
    assert History.read(write_run(tmp_path, tree_steps(2))).num_steps == 2


def test_the_last_line_has_its_numbers_alone(tmp_path: Path) -> None:
    lines = [
        *scored(tree_steps(2)),
        step(3, time__rollout="slow", entropy=[1]),
        evaluation(3, 0.5, **{"eval/f_low": "?"}),
    ]
    history = History.read(write_run(tmp_path, lines))
    assert history.last == {"step": 3, "step_time": 2.0, "reward": 0.3}
    assert "eval/f_low" not in history.last_evaluation


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        json.dumps([1]),
        '{"no": "step"}',
        '{"step": 2, "step_time": "2 s"}',
        '{"step": 2, "tree/generated_tokens": [1]}',
        '{"step": 2, "tree/num_tool_calls": 1e308}',
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    write_run(tmp_path, tree_steps(1), rest=line + "\n")
    with pytest.raises(FileError, match=r"metrics\.jsonl:2: "):
        History.read(tmp_path)


def test_scores_are_not_their_bounds() -> None:
    assert History([evaluation(0, 0.5), evaluation(1, 0.5, **{"eval/reward": 0.1})]).scores == ["f", "reward"]


def test_runs_are_called_by_their_folders_or_as_they_are_told(tmp_path: Path) -> None:
    a, b, c = (str(write_run(tmp_path / name, tree_steps(1))) for name in ("x/run", "y/run", "y/other"))
    found = folders_of([a, b, c, f"seeds={a},{b}", f"{c}/metrics.jsonl"][:4], lambda *_: None)
    assert [name for name, _ in found] == ["x/run", "y/run", "y/other", "seeds"]
    assert found[3][1] == [Path(a), Path(b)]
    assert folders_of([f"{c}/metrics.jsonl"], lambda *_: None) == [("other", [Path(c)])]
    with pytest.raises(UserError, match="2 lines would be called 'other'"):
        folders_of([c, c], lambda *_: None)
    with pytest.raises(UserError, match="expected RUN"):
        folders_of(["name="], lambda *_: None)


def test_a_folder_with_an_equals_sign_is_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "lr=3", tree_steps(1))
    assert folders_of([str(run)], lambda *_: None) == [("lr=3", [run])]


def test_a_run_without_metrics_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    found = [("begun", [tmp_path / "begun"]), ("run", [write_run(tmp_path / "run", tree_steps(1))])]
    said: list[str] = []
    assert [group.name for group in read_groups(found, said.append)] == ["run"]
    assert said == [f"{tmp_path / 'begun'}: has no metrics yet, and is left out"]
    with pytest.raises(FileError, match="has no metrics yet"):
        read_groups(found[:1], said.append)
    with pytest.raises(FileError, match="no such folder"):
        read_groups([("x", [tmp_path / "gone"])], said.append)
