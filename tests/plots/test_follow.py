"""A run is followed through growth, half lines, resumes and its end, and is never touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from treegrpo_cli.config.files import dump_config, make_config
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.errors import FileError
from treegrpo_cli.plots.dashboard import Dashboard, facts
from treegrpo_cli.plots.follow import Follower, State, lives, lock_holder

from tests.plots.written_runs import evaluation, scored, step, tree_steps, write_run


def settle(folder: Path, num_steps: int = 4, **budget: int) -> None:
    config = make_config({"train": {"num_steps": num_steps}, "budget": budget, "output_dir": str(folder)})
    (folder / "config.toml").write_text(dump_config(config))


def append(folder: Path, text: str) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(text)


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    assert not follower.look()
    assert follower.state is State.WAITING
    (tmp_path / "run").mkdir()
    with output_lock(tmp_path / "run"):
        assert follower.look()
        assert follower.state is State.STARTING
        write_run(tmp_path / "run", tree_steps(1))
        assert follower.look()
        assert follower.state is State.RUNNING


def test_lines_are_read_as_they_become_whole(tmp_path: Path) -> None:
    follower = Follower(write_run(tmp_path, tree_steps(1)))
    follower.look()
    second = json.dumps(step(2))
    append(tmp_path, second[:20])
    assert not follower.look()
    assert follower.step == 1
    append(tmp_path, second[20:] + "\n")
    assert follower.look()
    assert (follower.step, len(follower.history)) == (2, 2)
    assert not follower.look()


@pytest.mark.parametrize("num_kept", [0, 2])
def test_a_run_that_resumes_is_read_from_where_it_goes_on(tmp_path: Path, num_kept: int) -> None:
    follower = Follower(write_run(tmp_path, tree_steps(5)))
    follower.look()
    kept, again = tree_steps(5)[:num_kept], [step(number, reward=9.0) for number in range(num_kept + 1, 30)]
    file = tmp_path / "metrics.jsonl"
    with open(file, "r+") as cut:  # the same file, longer than before when we look again
        cut.truncate(0)
    append(tmp_path, "".join(json.dumps(line) + "\n" for line in [*kept, *again]))
    assert follower.look()
    rewards = follower.history.column("reward").tolist()
    assert rewards == [line["reward"] for line in [*kept, *again]]


def test_a_run_that_is_deleted_is_forgotten(tmp_path: Path) -> None:
    follower = Follower(write_run(tmp_path, tree_steps(5)))
    follower.look()
    (tmp_path / "metrics.jsonl").unlink()
    assert follower.look()
    assert (follower.state, len(follower.history)) == (State.WAITING, 0)


@pytest.mark.parametrize(
    ("num_steps", "budget", "state"),
    [(2, {}, State.FINISHED), (3, {}, State.STOPPED), (9, {"run_tokens": 200}, State.FINISHED)],
)
def test_a_run_without_a_lock_has_ended(tmp_path: Path, num_steps: int, budget: dict[str, int], state: State) -> None:
    settle(write_run(tmp_path, tree_steps(2)), num_steps, **budget)
    follower = Follower(tmp_path)
    follower.look()
    assert follower.state is state
    assert follower.state.is_over


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_lock_of_a_process_that_is_gone_counts_while_metrics_come(tmp_path: Path) -> None:
    settle(write_run(tmp_path, tree_steps(2)))
    (tmp_path / ".lock").write_text(f"{ended_process()}\n")
    follower = Follower(tmp_path)
    follower.look()
    assert follower.state is State.RUNNING
    for name in ("metrics.jsonl", ".lock"):
        os.utime(tmp_path / name, (0, 0))
    follower.look()
    assert follower.state is State.KILLED


def test_a_lock_says_whose_it_is(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    with output_lock(tmp_path):
        assert lock_holder(tmp_path) == os.getpid()
        assert lives(os.getpid())
    (tmp_path / ".lock").write_bytes(b"what\xff")
    assert lock_holder(tmp_path) == 0
    assert not lives(0)
    assert not lives(ended_process())


def test_the_time_left_is_what_the_last_steps_took(tmp_path: Path) -> None:
    settle(write_run(tmp_path, scored(tree_steps(2))), 10)
    follower = Follower(tmp_path)
    follower.look()
    each = 2.0 + 3 * 3.0 / 2  # a step, and three evaluations of 3 s over two steps
    assert follower.seconds_left() == pytest.approx(8 * each)
    assert follower.share_done() == 0.2
    settle(tmp_path, 10, run_tokens=300)
    follower.config = None
    follower.look()
    assert follower.share_done() == pytest.approx(200 / 300)
    assert follower.seconds_left() == pytest.approx(1 * each)


def test_following_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    settle(write_run(tmp_path, scored(tree_steps(2))))
    (tmp_path / ".lock").write_text("1\n")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*")}
    follower = Follower(tmp_path)
    follower.look()
    Dashboard(follower, ascii_only=False).rows(80, 40)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*")} == before


def test_a_broken_line_is_named_once_it_is_whole(tmp_path: Path) -> None:
    follower = Follower(write_run(tmp_path, tree_steps(1), rest="{broken\n"))
    with pytest.raises(FileError, match=r"metrics\.jsonl:2: not JSON"):
        follower.look()


FACTS = """\
run  stopped before its end  step 2 of 4  ━━━━━━━━━━────────── 50%
reward    0.200, entropy 0.5 nats
held out  f 0.300 (0.200 to 0.400) at step 2
speed     25% saved by sharing
spent     200 generated tokens, 16 tool calls, 4 s of steps
seconds   2 a step, rollout 1, update 0.75
signal    depth 1 0.5, depth 2 0.5
failures  50.0% of prompts, 25.0% of branches by a tool"""


def followed(tmp_path: Path) -> Follower:
    lines = scored(tree_steps(2))
    lines[3] |= {"failures/prompt": 0.5, "failures/tool": 0.25, "failures/reward": 0.0}
    settle(write_run(tmp_path / "run", lines))
    follower = Follower(tmp_path / "run")
    follower.look()
    return follower


def test_the_facts_are_those_of_the_last_step(tmp_path: Path) -> None:
    rows = facts(followed(tmp_path), 80, ascii_only=False)
    assert "\n".join(row.plain for row in rows) == FACTS


@pytest.mark.parametrize(("width", "height"), [(60, 24), (40, 10), (100, 50), (200, 5), (60, 1)])
def test_a_screen_is_no_larger_than_the_terminal(tmp_path: Path, width: int, height: int) -> None:
    for ascii_only in (False, True):
        rows = Dashboard(followed(tmp_path), ascii_only=ascii_only).rows(width, height)
        assert len(rows) <= height
        assert all(row.cell_len <= width for row in rows)
        assert not ascii_only or all(row.plain.isascii() for row in rows)
    assert any("┌" in row.plain for row in Dashboard(followed(tmp_path), ascii_only=False).rows(80, 30))


def test_a_run_that_is_only_evaluated_yet_has_facts(tmp_path: Path) -> None:
    follower = Follower(write_run(tmp_path / "run", [evaluation(0, 0.5)]))
    follower.look()
    assert [row.plain for row in facts(follower, 80, ascii_only=True)] == [
        "run  stopped before its end  step 0",
        "held out  f 0.500 (0.400 to 0.600) at step 0",
    ]
    assert Dashboard(follower, ascii_only=True).rows(80, 30)
