"""`treegrpo plot`: what it writes and shows, and the one line that a mistake gets."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from treegrpo_cli.errors import bounded

from tests.command_line import refused, run
from tests.compare.fake_runs import write_plan
from tests.compare.fake_runs import write_run as write_arm
from tests.plots.written_runs import scored, step, tree_steps, write_run

DRAWS = ("matplotlib", "scipy", "plotext")


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "trees", scored(tree_steps(2)))


def test_a_picture_is_a_file_of_the_kind_that_its_ending_names(a_run: Path, tmp_path: Path) -> None:
    done = run("plot", a_run, "--only", "score", "--output", tmp_path / "x.png")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"the picture is {tmp_path / 'x.png'}\n"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in a_run.iterdir()) == ["metrics.jsonl"]


def test_without_a_place_pictures_go_to_a_folder_here(
    a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("plot", a_run, "--metric", "entropy", "--metric", "tree/sharing_ratio", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    names = {f"{name}.{ending}" for name in ("all", "entropy", "tree-sharing_ratio") for ending in ("png", "svg")}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == names


def test_the_terminal_alone_writes_no_files(a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("plot", f"a={a_run}", f"b={a_run}", "--show", "--only", "reward", COLUMNS="60")
    assert done.returncode == 0
    assert "Reward of the training rollouts" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) == 60
    assert {"a", "b"} <= set(done.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["trees"]


def test_an_encoding_without_frames_gets_ascii(a_run: Path) -> None:
    command = [sys.executable, "-m", "treegrpo_cli", "plot", str(a_run), "--show", "--only", "entropy"]
    done = subprocess.run(
        command, capture_output=True, check=False, timeout=60, env={"PYTHONIOENCODING": "ascii", "PATH": "/bin"}
    )
    assert done.returncode == 0, done.stderr
    assert b"+----" in done.stdout
    assert done.stdout.isascii()


def test_a_comparison_is_a_line_an_arm_over_its_seeds(tmp_path: Path) -> None:
    for arm, seed, first in (("chains", 0, 0.1), ("chains", 1, 0.3), ("trees", 0, 0.2)):
        write_arm(tmp_path, arm, seed, first, [(100, 3, 1.0, 0.5), (100, 3, 1.0, 0.6)])
    write_plan(tmp_path, ["chains", "trees", "later"], [0, 1], 200)
    done = run("plot", tmp_path, "--show", "--only", "score", "--x", "tokens")
    assert done.returncode == 0, done.stderr
    assert "⠒ chains" in done.stdout
    assert "x trees" in done.stdout
    assert "later" not in done.stdout
    named = run("plot", f"ours={tmp_path}", "--show", "--only", "score")
    assert "ours chains" in named.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["gone"], "gone: is no run: there is no such folder"),
        (["{run}", "--only", "scores"], "--only 'scores': there is no such panel, did you mean 'score'?"),
        (["{run}", "--metric", "entrop"], "--metric 'entrop': the runs have no such metric, did you mean 'entropy'?"),
        (["{run}", "--metric", "path"], "--metric path: is text, and cannot be drawn"),
        (["{run}", "--output", "x.pdf"], "--output 'x.pdf': expected a folder, or a file that ends in .png or .svg"),
        (["{run}", "--output", "no/such/x.png"], "no/such: no such folder"),
        (["{run}/metrics.jsonl/x"], "{run}/metrics.jsonl/x: is no run: there is no such folder"),
        (["pyproject.toml"], "pyproject.toml: is no run: it is a file"),
        (["a={run},{run}"], "{run}: is named twice in the line 'a'"),
        (["{run}", "--output", "x" * 300], bounded("x" * 300, 250) + ": File name too long"),
        (["{run}", "--output", "x" * 230 + ".PNG"], "x" * 230 + ".PNG: the file name is longer than 200 bytes"),
        (
            ["{run}", "--output", "/dev/full"],
            "--output '/dev/full': expected a folder, or a file that ends in .png or .svg",
        ),
        (
            ["{run}", "--smooth", "9" * 20],
            "Invalid value for '--smooth': Input should be less than or equal to 1000000",
        ),
        (["{run}", "{run}"], "2 lines would be called 'trees'; name them, as NAME=RUN"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    a_run = write_run(tmp_path / "trees", [*tree_steps(1), step(2, path="dense")])
    done = run("plot", *(argument.format(run=a_run) for argument in arguments))
    assert refused(done) == f"treegrpo: {bounded(line.format(run=a_run))}"


def test_what_draws_is_named_with_its_extra_where_it_lacks(a_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treegrpo_cli.cli import plot

    monkeypatch.setattr(plot, "find_spec", lambda name: None if name == "plotext" else name)
    line = "treegrpo: this command needs plotext: pip install 'treegrpo[plots]'"
    assert refused(run("plot", a_run, "--show")) == line


@pytest.mark.parametrize("command", [["plot", "--help"], ["watch", "{run}"]])
def test_other_commands_load_nothing_that_draws(a_run: Path, command: list[str]) -> None:
    code = (
        "import sys, orjson\n"
        "from treegrpo_cli.cli.app import main\n"
        "try: main()\n"
        f"finally: print(orjson.dumps([name for name in {DRAWS!r} if name in sys.modules]).decode())"
    )
    arguments = [argument.format(run=a_run) for argument in command]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert orjson.loads(done.stdout.splitlines()[-1]) == []
