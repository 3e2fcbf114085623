"""`treegrpo compare`: runs of its own, resumed and reported; what is asked of it wrongly is one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import tomli_w
from treegrpo_cli.cli.compare import check_packages
from treegrpo_cli.compare import comparison
from treegrpo_cli.compare.launch import Spawner, Zygote
from treegrpo_cli.compare.room import Room
from treegrpo_cli.data import whole_file
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.run.progress import Reporter

from tests.command_line import refused, run
from tests.compare.fake_runs import write_plan, write_run
from tests.runs import small_run

CHAINS = {"rollout": {"num_trees": 4, "num_rounds": 0}}
TREES = {"rollout": {"num_trees": 2, "num_expansions": 1, "num_rounds": 1}}


def write_arms(folder: Path, model: Path, **arms: dict[str, Any]) -> list[str]:
    """The files of some arms and of what they share; the command line that compares them."""
    common = small_run(folder, model, train={"num_steps": 30, "eval_steps": 1, "save_steps": 1, "save_trees": False})
    (folder / "common.toml").write_text(tomli_w.dumps(common))
    for name, settings in arms.items():
        (folder / f"{name}.toml").write_text(tomli_w.dumps(settings))
    files = [str(folder / f"{name}.toml") for name in arms]
    return ["compare", *files, "--common", str(folder / "common.toml"), "--output", str(folder / "out"), "--quiet"]


def steps_of(path: Path) -> list[tuple[int, float]]:
    lines = [orjson.loads(line) for line in (path / "metrics.jsonl").read_bytes().splitlines()]
    return [(line["step"], line["tree/generated_tokens"]) for line in lines if "step_time" in line]


class FakeProcess:
    pid = 2**22 + 1
    """No process has this number."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


class FakeLauncher:
    """Finishes the runs it is told to start at once, but for those that it lets fail, by a line in their log."""

    def __init__(self, fails: Sequence[str] = ()) -> None:
        self.fails = fails
        self.started: list[list[str]] = []

    def start(self, module: str, arguments: Sequence[str], log: Path, num_threads: int = 0) -> FakeProcess:
        if module.endswith(".room"):
            log.write_text("[1]")
            return FakeProcess(0)
        self.started.append(list(arguments))
        name = Path(arguments[1]).stem
        if name in self.fails:
            log.write_text("some warning\ntreegrpo: data.train: not set\n")
            return FakeProcess(2)
        arm, _, seed = name.rpartition("-seed")
        folder = log.parents[1]
        shutil.rmtree(folder / "runs" / name, ignore_errors=True)
        path = write_run(folder, arm, int(seed), 0.1, [(60, 2, 1.0, 0.3), (60, 2, 1.0, 0.4 + int(seed) / 10)])
        shutil.copy(arguments[1], path / "config.toml")
        return FakeProcess(0)

    def close(self) -> None:
        pass


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    fake = FakeLauncher()
    monkeypatch.setattr(comparison, "open_launcher", lambda: fake)
    return fake


def test_two_arms_are_trained_on_two_seeds_and_told_apart(tiny_model_dir: Path, tmp_path: Path) -> None:
    command = [*write_arms(tmp_path, tiny_model_dir, chains=CHAINS, trees=TREES), "--seeds", "2"]
    done = run(*command, "--budget-tokens", "120", "--jobs", "2", "--score", "count_vowels")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    for arm in ("chains", "trees"):
        for seed in (0, 1):
            steps = steps_of(out / "runs" / f"{arm}-seed{seed}")
            assert sum(tokens for _, tokens in steps) >= 120 > sum(tokens for _, tokens in steps[:-1])
    results = orjson.loads((out / "results.json").read_bytes())
    assert [(arm["name"], arm["seeds"]) for arm in results["arms"]] == [("chains", [0, 1]), ("trees", [0, 1])]
    assert "count_vowels at 120 generated tokens" in done.stdout
    assert "seconds were measured with up to 2 runs at once" in done.stdout
    assert "| `rollout.num_rounds` | `0` | `1` |" in (out / "report.md").read_text()
    for picture in ("score-tokens", "score-seconds"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (out / f"{picture}.svg").read_bytes()

    # a run that was killed goes on from its checkpoint; those that are finished are left alone
    killed, before = out / "runs" / "trees-seed1", steps_of(out / "runs" / "trees-seed1")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl") if path.parent != killed}
    lines = (killed / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    done = run(*command, "--budget-tokens", "120", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert steps_of(killed) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert orjson.loads((out / "results.json").read_bytes()) == results


def test_a_failing_run_does_not_lose_the_others(launcher: FakeLauncher, tiny_model_dir: Path, tmp_path: Path) -> None:
    launcher.fails = ["b-seed1"]
    command = [*write_arms(tmp_path, tiny_model_dir, a={}, b={}), "--seeds", "3", "--budget-tokens", "120"]
    done = run(*command)
    assert done.returncode == 1
    warned, said = done.stderr.splitlines()
    assert warned.endswith(
        "b-seed1: failed with exit code 2; its log is " + f"{tmp_path}/out/logs/b-seed1.log: data.train: not set"
    )
    assert said.startswith("treegrpo: 1 of 6 runs failed (b-seed1); b-seed1 failed with exit code 2")
    assert [len(arm["seeds"]) for arm in orjson.loads((tmp_path / "out" / "results.json").read_bytes())["arms"]] == [
        3,
        2,
    ]
    assert "- b-seed1 is left out: it failed with exit code 2" in (tmp_path / "out" / "report.md").read_text()

    launcher.fails, launcher.started = [], []
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert [Path(arguments[1]).stem for arguments in launcher.started] == ["b-seed1"]
    assert "left out" not in (tmp_path / "out" / "report.md").read_text()


def test_arms_stay_abreast_and_what_was_begun_is_resumed(
    launcher: FakeLauncher, tiny_model_dir: Path, tmp_path: Path
) -> None:
    command = [*write_arms(tmp_path, tiny_model_dir, a={}, b={}), "--seeds", "3,7", "--budget-tokens", "120"]
    assert run(*command).returncode == 0
    assert [Path(arguments[1]).stem for arguments in launcher.started] == ["a-seed3", "b-seed3", "a-seed7", "b-seed7"]
    assert all("--resume" not in arguments for arguments in launcher.started)
    metrics = tmp_path / "out" / "runs" / "b-seed3" / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:2]))
    launcher.started = []
    assert run(*command).returncode == 0
    [arguments] = launcher.started
    assert arguments[2:] == ["--quiet", "--resume"]


def test_a_changed_arm_is_refused_with_what_changed(
    launcher: FakeLauncher, tiny_model_dir: Path, tmp_path: Path
) -> None:
    command = [*write_arms(tmp_path, tiny_model_dir, a={}, b={}), "--seeds", "1", "--budget-tokens", "120"]
    assert run(*command).returncode == 0
    (tmp_path / "b.toml").write_text("[loss]\nclip_low = 0.1\n")
    said = refused(run(*command))
    assert f"{tmp_path}/out/runs/b-seed0: was begun with loss.clip_low = 0.2, and the arm now has 0.1" in said
    (tmp_path / "b.toml").write_text("")
    assert "train.num_steps" not in refused(run(*command, "data.eval_limit=1"))
    assert "a-seed0: was begun with data.eval_limit = 0" in refused(run(*command, "data.eval_limit=1"))
    more = [text if text != "120" else "110" for text in command]
    assert run(*more).returncode == 0  # where a run ends is no change


def test_a_report_is_made_again_of_the_kept_runs(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, "slow", seed, 0.0, [(50, 2, 1.0, 0.2), (50, 2, 1.0, 0.4)])
        write_run(tmp_path, "fast", seed, 0.0, [(50, 1, 1.0, 0.4), (50, 1, 1.0, 0.6 + seed / 100)])
    write_plan(tmp_path, ["slow", "fast"], range(5), 100)
    done = run("compare", "--report-only", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text()
    assert "(mean of the middle 3 of 5 seeds)" in text
    assert "| fast | 5 | 0.620 [0.603, 0.637] | 0.355" in text
    assert "| 0.4 | tool calls | 4 [4, 4] ×1.00 (n 5/5) | 1 [1, 1] ×0.25 (n 5/5) |" in text
    files = {path.name: path.read_bytes() for path in tmp_path.glob("score-*.svg")}
    assert files.keys() == {f"score-{axis}.svg" for axis in ("tokens", "tool_calls", "seconds")}
    done = run("compare", "--report-only", "--output", tmp_path, "--seeds", "1,3")
    assert done.returncode == 0, done.stderr
    assert "| fast | 2 | 0.620 [0.610, 0.630] |" in (tmp_path / "report.md").read_text()
    assert "--seeds: 5 is no seed of the comparison, which has 0, 1" in refused(
        run("compare", "--report-only", "--output", tmp_path, "--seeds", "5,")
    )
    done = run("compare", "--report-only", "--output", tmp_path, "--targets", "0.3,9")
    assert done.returncode == 0, done.stderr
    assert (
        "| 9 | generated tokens | not reached (n 0/5) | not reached (n 0/5) |" in (tmp_path / "report.md").read_text()
    )
    assert {name: (tmp_path / name).read_bytes() for name in files} == files  # equal numbers are equal pictures


def test_a_report_says_where_runs_ended_before_the_budget(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 0, 0.0, [(50, 2, 1.0, 0.2)])
    write_run(tmp_path, "b", 0, 0.0, [(90, 2, 1.0, 0.2), (90, 2, 1.0, 0.3)])
    write_plan(tmp_path, ["a", "b"], [0, 1], 180)
    done = run("compare", "--report-only", "--output", tmp_path)
    assert "compared up to 50 generated tokens, not 180: runs of a ended earlier, at train.num_steps" in done.stdout
    assert "a has no finished run of seed 1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}", "--seeds", "2"], "give one budget, of --budget-tokens, --budget-tool-calls and --budget-seconds"),
        (["{a}", "--budget-tokens", "5", "--budget-seconds", "5"], "give one budget"),
        (["{a}", "--budget-tokens", "0"], "'--budget-tokens': Input should be greater than or equal to 1"),
        (["--budget-tokens", "5"], "name the arms: one file of settings for each"),
        (["{tmp}/none.toml", "--budget-tokens", "5"], "none.toml: No such file"),
        (["{a}", "--common", "{tmp}/none.toml", "--budget-tokens", "5"], "none.toml: No such file"),
        (["{a}", "--seeds", "x", "--budget-tokens", "5"], "--seeds 'x': expected how many"),
        (["{a}", "--targets", "high", "--budget-tokens", "5"], "--targets 'high': expected scores"),
        (["{c}", "--score", "em", "--budget-tokens", "5"], "--score 'em': evaluations have no such score, valid: f1"),
        (["{a}", "seed=3", "--budget-tokens", "5"], "seed: every run has its own"),
        (["{a}", "--budget-seconds", "5"], "a.toml: train.eval_tokens or train.eval_steps: the scores come from"),
        (["{a}", "{b}", "--budget-tokens", "5"], "b.toml: data.eval is 'other.jsonl', and the first arm has ''"),
        (["--report-only", "--output", "{tmp}"], "holds no comparison: comparison.json"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "b.toml").write_text("[data]\neval = 'other.jsonl'\n")
    (tmp_path / "c.toml").write_text("[reward]\nfunctions = ['exact_match', 'f1']\neval_function = 'f1'\n")
    named = {name: tmp_path / f"{name}.toml" for name in "abc"} | {"tmp": tmp_path}
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    assert message in refused(run("compare", *(text.format(**named) for text in arguments), *output))


def test_reports_of_what_is_not_there_are_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 0, 0.0, [(50, 2, 1.0, 0.2)])
    for arms, message in ((["a", "b"], "has no finished run of b"), ([], "arms, seeds or axis are missing")):
        write_plan(tmp_path, arms, [0], 50)
        assert message in refused(run("compare", "--report-only", "--output", tmp_path))
    write_plan(tmp_path, ["a"], [0], 50)
    assert "--jobs: not with --report-only" in refused(
        run("compare", "--report-only", "--output", tmp_path, "--jobs", "2")
    )
    said = refused(run("compare", "--report-only", "--output", tmp_path, "--score", "g"))
    assert "a-seed0: has no score 'g', valid: f" in said
    (tmp_path / "comparison.json").write_text("{")
    assert "is not what a comparison wrote" in refused(run("compare", "--report-only", "--output", tmp_path))


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "a", 0, 0.0, [(50, 2, 1.0, 0.2)])
    write_plan(tmp_path, ["a"], [0], 50)
    plan, reporter = comparison.Plan.read(tmp_path), Reporter(quiet=True)
    comparison.report(tmp_path, plan, reporter)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in ("results.json", "score-tokens.png", "report.md"):

        def opened(path: Path, mode: str, full: str = name) -> Any:
            return open("/dev/full", "wb") if path.name.startswith(f".{full}.") else open(path, mode)

        monkeypatch.setattr(whole_file, "open", opened, raising=False)
        with pytest.raises(FileError) as raised:
            comparison.report(tmp_path, plan, reporter)
        assert str(raised.value) == f"{tmp_path / name}: No space left on device"
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_score_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", 0, 0.0, [(50, 2, 1.0, 0.2)])
    write_plan(tmp_path, ["a"], [0], 50)
    lines = (path / "metrics.jsonl").read_text()
    for value, message in (("null", "expected evaluations with eval/f, got none"), ('"x"', "could not convert string")):
        (path / "metrics.jsonl").write_text(
            lines.replace('"eval/f":0.2', f'"eval/f":{value}').replace(":0.0,", ":null,")
        )
        assert message in refused(run("compare", "--report-only", "--output", tmp_path))
    (path / "metrics.jsonl").write_text(lines.replace('"eval/f":0.2', '"eval/f":NaN'))
    assert "metrics.jsonl:3: not JSON" in refused(run("compare", "--report-only", "--output", tmp_path))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treegrpo_cli.cli.compare.find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(UserError, match=r"pip install 'treegrpo\[compare\]'$"):
        check_packages()


@pytest.mark.parametrize(
    ("room", "jobs"),
    [
        (Room("cuda", 16, 2**37, 2**30), 1),
        (Room("cpu", 4, 2**35, 2**28), 4),
        (Room("cpu", 64, 2**35, 2**28), 10),
        (Room("cpu", 64, 2**33, 2**31), 2),
        (Room("cpu", 8, 2**30, 2**33), 1),
        (Room("cpu", 8, 0, 0), 1),
    ],
)
def test_as_many_runs_go_at_once_as_cores_and_memory_hold(room: Room, jobs: int) -> None:
    assert room.num_jobs(10) == jobs


@pytest.mark.parametrize("kind", [Zygote, Spawner])
def test_processes_run_modules_say_what_they_say_to_a_log_and_stop_with_their_launcher(
    kind: type[Zygote] | type[Spawner], tmp_path: Path
) -> None:
    launcher = kind()
    try:
        listed = launcher.start("treegrpo_cli", ["estimators"], tmp_path / "listed.log", 1)
        refused_ = launcher.start("treegrpo_cli", ["train", "none.toml"], tmp_path / "refused.log")
        waits = launcher.start("http.server", ["0", "--bind", "127.0.0.1"], tmp_path / "waits.log")
        codes = [wait_for(process) for process in (listed, refused_)]
        assert codes == [0, 2]
        assert waits.poll() is None
    finally:
        launcher.close()
    assert "tree-grpo" in (tmp_path / "listed.log").read_text()
    assert "treegrpo: none.toml" in (tmp_path / "refused.log").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(waits.pid, 0)


def wait_for(process: Any) -> int:
    deadline = time.monotonic() + 200
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(code)


def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    command = [*write_arms(tmp_path, tiny_model_dir, a=CHAINS), "--seeds", "1", "--budget-tokens", str(10**9)]
    metrics = tmp_path / "out" / "runs" / "a-seed0" / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "treegrpo_cli", *command, "train.num_steps=1000000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 250
    while not (metrics.is_file() and steps_of(metrics.parent)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == ("treegrpo: stopped: 0 of 1 runs are finished; the same command goes on from there")
    assert list(metrics.parent.glob("checkpoint-*"))
    assert "stopped after step" in (tmp_path / "out" / "logs" / "a-seed0.log").read_text()
