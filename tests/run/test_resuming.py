"""What a resumed run may change, and what it puts aside."""

import json
from pathlib import Path

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.effects import CANNOT_CHANGE_THE_RESULT
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.run.directory import RunDirectory
from treegrpo_cli.run.resuming import check_changes, differences, is_evaluated, put_aside


def lines(steps: range) -> bytes:
    return b"".join(json.dumps({"step": step, "loss": 1 / step}).encode() + b"\n" for step in steps)


def test_metrics_and_trees_behind_the_resumed_step_are_moved_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(lines(range(1, 5)) + b'{"step": 5, "lo')
    (tmp_path / "trees").mkdir()
    for step in (2, 3, 4):
        (tmp_path / "trees" / f"step-{step:05d}.jsonl.zst").write_bytes(b"%d" % step)
    assert put_aside(tmp_path, 2) == tmp_path / "old-1"
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines(range(1, 3))
    assert (tmp_path / "old-1" / "metrics.jsonl").read_bytes() == lines(range(3, 5)) + b'{"step": 5, "lo'
    assert [path.name for path in (tmp_path / "trees").iterdir()] == ["step-00002.jsonl.zst"]
    moved = {path.name: path.read_bytes() for path in (tmp_path / "old-1" / "trees").iterdir()}
    assert moved == {"step-00003.jsonl.zst": b"3", "step-00004.jsonl.zst": b"4"}


def test_what_is_put_aside_again_goes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "metrics.jsonl").write_bytes(lines(range(1, 3 + number)))
        assert put_aside(tmp_path, -1) == tmp_path / f"old-{number}"
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert (tmp_path / "old-2" / "metrics.jsonl").read_bytes() == lines(range(1, 5))


@pytest.mark.parametrize("tail", ['{"step": 3, "loss": 1}', "\x00\x00\n", '{"loss": 1}\n', "[]\n"])
def test_an_unfinished_or_foreign_last_line_is_put_aside(tmp_path: Path, tail: str) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(lines(range(1, 3)) + tail.encode())
    put_aside(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines(range(1, 3))
    assert (tmp_path / "old-1" / "metrics.jsonl").read_bytes() == tail.encode()


def test_where_nothing_is_behind_the_step_nothing_moves(tmp_path: Path) -> None:
    assert put_aside(tmp_path, -1) is None
    (tmp_path / "metrics.jsonl").write_bytes(lines(range(1, 3)))
    assert put_aside(tmp_path, 2) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_step_counts_as_evaluated_where_the_file_says_so(tmp_path: Path) -> None:
    assert not is_evaluated(tmp_path, 1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "eval/f1": 0.5}\n')
    assert [is_evaluated(tmp_path, step) for step in (1, 2)] == [False, True]


def test_every_setting_that_is_free_to_change_exists() -> None:
    config = Config()
    for key in CANNOT_CHANGE_THE_RESULT:
        section, _, name = key.rpartition(".")
        assert hasattr(getattr(config, section) if section else config, name)


def test_differences_are_named_with_both_values() -> None:
    changed = make_config({"seed": 3, "loss": {"clip_low": 0.1}, "advantage": {"estimator": "grpo", "eps": 0.5}})
    assert differences(Config(), changed) == [
        ("advantage.eps", None, 0.5),
        ("advantage.estimator", "tree-grpo", "grpo"),
        ("loss.clip_low", 0.2, 0.1),
        ("seed", 0, 3),
    ]


def test_settings_that_cannot_change_the_result_change_without_a_word() -> None:
    changed = make_config({"train": {"microbatch_tokens": 8, "num_steps": 7}, "data": {"eval": "x"}})
    assert check_changes(Config(), changed, (), Path("config.toml")) == []


def test_a_setting_that_changes_the_result_is_refused_unless_it_was_named() -> None:
    changed = make_config({"seed": 3})
    with pytest.raises(UserError, match=r"^config.toml: the run has seed = 0, the settings now say 3; .*command line"):
        check_changes(Config(), changed, (), Path("config.toml"))
    assert check_changes(Config(), changed, {"seed"}, Path("config.toml")) == [
        "seed was 0 until now and is 3 from here on: the result will differ from that of a run with one value"
    ]


def test_more_steps_change_a_rate_that_runs_to_the_last_one() -> None:
    before = make_config({"optimizer": {"schedule": "linear"}})
    after = make_config({"optimizer": {"schedule": "linear"}, "train": {"num_steps": 7}})
    with pytest.raises(UserError, match=r"train.num_steps = 100"):
        check_changes(before, after, (), Path("config.toml"))


def test_a_folder_that_a_run_writes_is_refused_to_a_second_one(tmp_path: Path) -> None:
    config = make_config({"output_dir": str(tmp_path / "run")})
    with RunDirectory(config, resume=False) as directory:
        with pytest.raises(FileError, match="is being written by another run"), RunDirectory(config, resume=False):
            pass
        directory.claim()
        with pytest.raises(FileError, match="is being written by another run"), RunDirectory(config, resume=True):
            pass
    with RunDirectory(config, resume=True):
        pass
