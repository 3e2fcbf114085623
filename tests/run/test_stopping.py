"""Signals: the first is a clean stop, the second ends the program at once, and neither shows a traceback."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from treegrpo_cli import signals
from treegrpo_cli.config.files import dump_config, make_config
from treegrpo_cli.errors import Stopped
from treegrpo_cli.run.stopping import StopRequest
from treegrpo_cli.train.checkpoint import checkpoints

from tests.runs import small_run
from tests.zygote import zygote

PACKAGE = Path(signals.__file__).parents[1]


def program(code: str, **popen: Any) -> subprocess.Popen[str]:
    """A program of ours that runs `code`; it says `ready` where it waits."""
    head = "import os, signal, sys, time\nfrom treegrpo_cli import signals\nsignals.install()\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@NUMBERS
def test_a_signal_to_which_nothing_reacts_ends_the_program_in_one_line(number: signal.Signals) -> None:
    process = program("print('ready', flush=True)\nwhile True: time.sleep(1)\n")
    wait_ready(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + number, "treegrpo: stopped\n")


def test_the_last_line_reaches_standard_error_also_while_an_engine_has_its_log_there(tmp_path: Path) -> None:
    code = f"os.dup2(os.open({str(tmp_path / 'log')!r}, os.O_CREAT | os.O_WRONLY), 2)\n"
    process = program(code + "print('ready', flush=True)\nwhile True: time.sleep(1)\n")
    wait_ready(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "treegrpo: stopped\n")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_keep_a_program_from_being_stopped(closed: str) -> None:
    code = (
        "import os, time; from treegrpo_cli.signals import install; install(); os.kill(os.getpid(), 2); time.sleep(9)"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], timeout=60, check=False
    )
    assert done.returncode == 130


BUSY = """
with signals.react(lambda number: print('noted', flush=True)):
    print('ready', flush=True)
    while True: {wait}
"""


@NUMBERS
@pytest.mark.parametrize("wait", ["time.sleep(1)", "sum(range(10**6))", "__import__('threading').Event().wait(1)"])
def test_a_second_signal_ends_the_program_at_once_whatever_it_does(number: signal.Signals, wait: str) -> None:
    process = program(BUSY.format(wait=wait))
    wait_ready(process)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "noted\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + number, "treegrpo: stopped at once\n")


def test_a_second_signal_does_not_wait_for_the_main_thread() -> None:
    code = "import hashlib\nprint('ready', flush=True)\nhashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)\n"
    process = program(f"with signals.react(print):\n {code.replace(chr(10), chr(10) + ' ')}")
    wait_ready(process)
    for _ in range(2):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)  # the hash would take minutes
    assert (process.returncode, errors) == (130, "treegrpo: stopped at once\n")


def test_a_stop_that_takes_long_says_how_to_get_out() -> None:
    process = program(BUSY.format(wait="time.sleep(60)").replace("with", "signals.PATIENCE_S = 0.1\nwith"))
    wait_ready(process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == "treegrpo: stopping; a second signal ends it at once\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_forked_child_dies_as_any_process_and_its_signals_are_its_own() -> None:
    code = (
        "import multiprocessing\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "with signals.react(print):\n"
        " child.start(); os.kill(child.pid, signal.SIGTERM); child.join()\n"
        "print(child.exitcode, signals.first_signal())\n"
    )
    done, errors = program(code).communicate(timeout=60)
    assert (done, errors) == ("-15 0\n", "")


@NUMBERS
@pytest.mark.parametrize("swallow", ["except BaseException: pass", "finally: Group()"])
def test_a_command_is_stopped_also_in_code_that_swallows_what_is_raised(number: signal.Signals, swallow: str) -> None:
    code = (
        "import treegrpo_cli.cli.app as cli\n"
        "class Group:\n"
        f" def __del__(self): os.kill(os.getpid(), {int(number)}); time.sleep(5)\n"
        "def command(*_, **__):\n"
        f" try: Group() or os.kill(os.getpid(), {int(number)}); time.sleep(5)\n"
        f" {swallow}\n"
        "cli.app = command\n"
        "cli.main()\n"
    )
    process = program(code)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "treegrpo: stopped\n")


@NUMBERS
def test_what_a_stop_leaves_half_done_is_no_traceback(number: signal.Signals) -> None:
    code = (
        "import treegrpo_cli.cli.app as cli\n"
        "def command(*_, **__):\n"
        " with signals.react(lambda _: None):\n"
        f"  os.kill(os.getpid(), {int(number)})\n"
        "  raise RuntimeError('the engine was closed meanwhile')\n"
        "cli.app = command\n"
        "cli.main()\n"
    )
    process = program(code)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "treegrpo: stopped\n")


def test_seeing_to_signals_imports_what_the_interpreter_has() -> None:
    code = "import sys; before = {*sys.modules}; import treegrpo_cli.__main__; print(sorted({*sys.modules} - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(PACKAGE)!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    slow = {"typing", "enum", "re", "signal", "threading", "contextlib", "collections", "importlib", "warnings"}
    assert "treegrpo_cli.signals" in done.stdout
    assert not [name for name in slow if f"'{name}'" in done.stdout]


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.08])
def test_a_signal_during_the_imports_is_one_line(tmp_path: Path, delay_s: float) -> None:
    started = tmp_path / "started"
    code = (  # what `python -m treegrpo_cli` does, and a note when the program is there
        "import pathlib, sys\nfrom treegrpo_cli import signals\nsignals.install()\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "from treegrpo_cli.__main__ import main\nsys.argv = ['treegrpo', 'train', 'missing.toml']\nmain()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not started.exists():
        time.sleep(0.001)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "treegrpo: stopped\n")


def test_in_a_process_that_is_not_ours_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop, asyncio.Runner() as runner:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            stop.run(runner, asyncio.sleep(0))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_other_than_the_main_one_changes_no_handler() -> None:
    seen: list[Any] = []

    def work() -> None:
        with signals.react(lambda _: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("seed", range(4))
def test_two_signals_at_any_moment_leave_one_last_line_and_a_run_to_go_on_with(
    tiny_model_dir: Path, tmp_path: Path, seed: int
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"num_steps": 1000, "save_steps": 1, "eval_steps": 2})
    (tmp_path / "c.toml").write_text(dump_config(make_config(settings)))
    metrics = tmp_path / "run" / "metrics.jsonl"
    draw = random.Random(seed)
    command = zygote().start(["train", "c.toml"], cwd=tmp_path)
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
        assert command.poll() is None
        time.sleep(0.01)
    time.sleep(draw.random() * 0.3)
    command.send_signal(signal.SIGINT)
    time.sleep(draw.random() * 0.05)
    command.send_signal(signal.SIGTERM)
    done = command.communicate(timeout=60)
    assert done.returncode in (130, 143), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("treegrpo: stopped")
    assert all(orjson.loads(line) for line in metrics.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
    assert checkpoints(tmp_path / "run")


def test_a_signal_inside_a_destructor_ends_the_program_in_one_line() -> None:
    code = (
        "import treegrpo_cli.cli.app as app\n"
        "class Slow:\n"
        "    def __del__(self):\n"
        "        print('ready', flush=True)\n"
        "        while True: time.sleep(0.01)\n"
        "def run():\n"
        "    Slow()\n"
        "app._run = run\n"
        "app.main()\n"
    )
    process = program(code)
    wait_ready(process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, "treegrpo: stopped\n")
