"""`treegrpo watch` on a terminal of its own: what it shows, when it ends, and how it leaves the terminal."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
from treegrpo_cli.cli.watch import may_go_on
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.plots.follow import State

from tests.command_line import refused, run
from tests.plots.test_follow import append, settle
from tests.plots.written_runs import scored, step, tree_steps, write_run
from tests.pseudo_terminal import shown_in_terminal

PATIENCE_S = 60.0


class Terminal:
    """A terminal with `treegrpo watch` on it, and all that it has shown."""

    def __init__(self, *arguments: str, columns: int = 80, **environment: str) -> None:
        self.ours, self._theirs = pty.openpty()
        self.resize(columns)
        self.before = termios.tcgetattr(self._theirs)
        command = [sys.executable, "-m", "treegrpo_cli", "watch", *arguments]
        environ = {**os.environ, "TERM": "xterm", **environment}
        environ.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            command, stdin=self._theirs, stdout=self._theirs, stderr=self._theirs, env=environ, start_new_session=True
        )
        self.shown = ""

    def resize(self, columns: int, rows: int = 30) -> None:
        ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, text: str) -> str:
        """Return what is shown up to this text, behind what was waited for before."""
        end = time.monotonic() + PATIENCE_S
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.ours], [], [], 0.2)[0]:
                self.shown += os.read(self.ours, 65536).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def press(self, key: bytes) -> None:
        os.write(self.ours, key)

    def end(self) -> int:
        """Wait for the program; return its exit code."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, self.shown
            if select.select([self.ours], [], [], 0.1)[0]:
                self.shown += os.read(self.ours, 65536).decode(errors="replace")
        while select.select([self.ours], [], [], 0)[0]:
            self.shown += os.read(self.ours, 65536).decode(errors="replace")
        return self.process.returncode

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._theirs) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def open_terminal(terminals: list[Terminal], *arguments: str, columns: int = 80, **environment: str) -> Terminal:
    terminals.append(Terminal(*arguments, columns=columns, **environment))
    return terminals[-1]


def test_a_run_is_followed_from_before_it_begins_until_it_ends(tmp_path: Path, terminals: list[Terminal]) -> None:
    folder = tmp_path / "run"
    terminal = open_terminal(terminals, str(folder), NO_COLOR="1")
    terminal.wait_for("\x1b[?1049h")
    terminal.wait_for("waiting for the run")
    folder.mkdir()
    with output_lock(folder):
        settle(folder, 3)
        write_run(folder, scored(tree_steps(1)))
        terminal.wait_for("step 1 of 3")
        terminal.wait_for("┌")
        append(folder, '{"step": 2, "step_time": 2.0, "reward": 0.625}\n')
        terminal.wait_for("step 2 of 3")
        terminal.wait_for("0.625")
        terminal.resize(60)
        append(folder, '{"step": 3, "step_time": 2.0, "reward": 0.75}\n')
        terminal.wait_for("step 3 of 3")
    assert terminal.end() == 0
    left = terminal.shown.partition("\x1b[?1049l")[2]
    assert "finished  step 3 of 3" in left
    assert "\x1b[?25h" in terminal.shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", terminal.shown)
    assert terminal.is_as_before


def test_a_run_that_stopped_is_waited_for_in_case_it_is_resumed(tmp_path: Path, terminals: list[Terminal]) -> None:
    settle(write_run(tmp_path, tree_steps(2)), 3)
    terminal = open_terminal(terminals, str(tmp_path), NO_COLOR="1")
    terminal.wait_for("waiting for a --resume")
    with output_lock(tmp_path):
        terminal.wait_for("running")
        append(tmp_path, '{"step": 3, "step_time": 2.0, "reward": 0.75}\n')
        terminal.wait_for("step 3 of 3")
    assert terminal.end() == 0
    assert re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown.partition("\x1b[?1049l")[2]).count("finished  step 3 of 3") == 1


@pytest.mark.parametrize(
    ("state", "seconds", "waits"),
    [
        (State.RUNNING, -1.0, True),
        (State.STOPPED, 60.0, True),
        (State.STOPPED, -1.0, False),
        (State.KILLED, 60.0, True),
        (State.FINISHED, 60.0, False),
    ],
)
def test_a_run_that_stopped_is_not_waited_for_longer(state: State, seconds: float, waits: bool) -> None:
    assert may_go_on(state, time.monotonic() + seconds) is waits


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_a_key_leaves_and_the_terminal_is_as_before(tmp_path: Path, terminals: list[Terminal], key: bytes) -> None:
    with output_lock(tmp_path):
        settle(write_run(tmp_path, scored(tree_steps(2))))
        terminal = open_terminal(terminals, str(tmp_path), columns=60)
        terminal.wait_for("q leaves")
        terminal.press(b"x")
        terminal.press(b"\x1b[A")
        time.sleep(0.3)
        assert terminal.process.poll() is None
        terminal.press(key)
        assert terminal.end() == 0
    assert terminal.is_as_before
    assert "\x1b[?1049l" in terminal.shown


def test_a_signal_leaves_too(tmp_path: Path, terminals: list[Terminal]) -> None:
    with output_lock(tmp_path):
        settle(write_run(tmp_path, tree_steps(2)))
        terminal = open_terminal(terminals, str(tmp_path))
        terminal.wait_for("q leaves")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 0
    assert terminal.is_as_before
    assert "\x1b[?1049l" in terminal.shown


def test_a_run_that_has_ended_is_told_and_not_followed(tmp_path: Path) -> None:
    settle(write_run(tmp_path / "run", tree_steps(2)), 2)
    shown = shown_in_terminal("watch", tmp_path / "run").shown
    assert "\x1b[?1049h" not in shown
    assert "finished" in shown


def test_a_pipe_gets_one_summary_of_a_run_that_goes_on(tmp_path: Path) -> None:
    with output_lock(tmp_path):
        settle(write_run(tmp_path, [step(1), step(2)]))
        for arguments in ([], ["--once"]):
            done = run("watch", tmp_path, *arguments)
            assert (done.returncode, done.stderr) == (0, "")
            first, *rest = done.stdout.splitlines()
            assert first.startswith(f"{tmp_path.name}  running  step 2 of 4")
            assert first.endswith("50%  about 4 s left")
            assert rest[0] == "reward    0.200"
            assert "\x1b" not in done.stdout


def test_a_run_that_can_go_on_is_told_so(tmp_path: Path) -> None:
    settle(write_run(tmp_path, tree_steps(2)))
    assert run("watch", tmp_path).stdout.splitlines()[-1] == "--resume goes on from its last checkpoint"


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    assert refused(run("watch", tmp_path)) == f"treegrpo: {tmp_path}: holds no run yet"
    (tmp_path / "file").write_text("x")
    assert (
        refused(run("watch", tmp_path / "file", "--once")) == f"treegrpo: {tmp_path / 'file'}: is no run: it is a file"
    )
    write_run(tmp_path / "broken", tree_steps(1), rest="x\n")
    assert "metrics.jsonl:2: not JSON" in refused(run("watch", tmp_path / "broken"))


@pytest.mark.parametrize(
    "name", ["reward", "eval/f_low", "time/rollout", "tree/abs_advantage_depth_1", "failures/tool", "entropy"]
)
@pytest.mark.parametrize("value", ["text", [1]])
def test_a_number_that_becomes_something_else_is_left_out(tmp_path: Path, name: str, value: object) -> None:
    lines = scored(tree_steps(2))
    write_run(tmp_path, [*lines[:-2], *({**line, name: value} for line in lines[-2:])])
    done = run("watch", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(value) not in done.stdout


def test_a_terminal_that_is_no_column_wide_is_taken_for_one_that_does_not_say(tmp_path: Path) -> None:
    write_run(tmp_path, tree_steps(2))
    assert run("watch", tmp_path, COLUMNS="0").stdout == run("watch", tmp_path).stdout != ""
