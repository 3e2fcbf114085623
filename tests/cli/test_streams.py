"""Closed streams, terminals of any width, names of any kind: a line and an exit code, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from treegrpo_cli.cli.settings import read_settings

from tests.sample_trees import tree, write_lines


def treegrpo(arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a shell, which can close streams."""
    return subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m treegrpo_cli {arguments}"],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("inspect-tree t.jsonl", 0), ("rollout gone.toml", 2), ("--help", 0)])
def test_closed_streams_are_no_error(tmp_path: Path, command: str, code: int, closed: str) -> None:
    write_lines(tmp_path / "t.jsonl", [tree()])
    done = treegrpo(f"{command} {closed}", tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("columns", ["100000000", "9" * 5000, "-5", "x"])
def test_a_terminal_of_any_width_is_drawn_on(tmp_path: Path, columns: str) -> None:
    write_lines(tmp_path / "t.jsonl", [tree()])
    done = treegrpo("inspect-tree t.jsonl", tmp_path, COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 1000
    assert treegrpo("--help", tmp_path, COLUMNS=columns).returncode == 0


def test_a_settings_file_may_have_an_equals_sign_in_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lr=3").mkdir()
    (tmp_path / "lr=3" / "c.toml").write_text("seed = 5\n")
    monkeypatch.chdir(tmp_path)
    config = read_settings(["lr=3/c.toml", "rollout.num_trees=7"])
    assert (config.seed, config.rollout.num_trees) == (5, 7)


@pytest.mark.parametrize(
    "arguments",
    [
        "rollout " + "x" * 4000,
        "rollout " + "x" * 4000 + "=1",
        "rollout " + "x/" * 2500 + "c.toml",
        "rollout model.path=" + "x" * 4000 + " data.train=q.jsonl --output " + "y" * 4000,
        "train " + "x" * 4000 + " --resume",
        "rollout --" + "x" * 4000,
        "inspect-tree " + "x" * 4000,
        "rollout model.path=x data.train=$'\\xff.jsonl'",
        "rollout model.path=x data.train=q.jsonl --output $'\\xff.jsonl'",
        "rollout $'\\xff.toml'",
    ],
)
def test_an_error_is_lines_that_can_be_read(tmp_path: Path, arguments: str) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    done = treegrpo(arguments, tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("treegrpo: ") and len(line) <= 520 for line in lines)


@pytest.mark.parametrize("arguments", ["config --markdown", "config --format json", "init chat café"])
def test_what_an_encoding_lacks_is_written_as_an_escape(tmp_path: Path, arguments: str) -> None:
    done = treegrpo(arguments, tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "\\" in done.stdout
