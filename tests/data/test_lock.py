"""One writer at a time: the second is refused in one line, and a killed one stands in nobody's way."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from treegrpo_cli.data.lock import output_lock, same_file
from treegrpo_cli.errors import FileError

HOLD = """
import sys
from treegrpo_cli.data.lock import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock of `path` until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["file", "missing file", "folder"])
def test_a_second_writer_is_refused_until_the_first_has_gone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("x")
    first = hold(path)
    with (
        pytest.raises(FileError, match=rf"^{path}: is being written by another run, process {first.pid}$"),
        output_lock(path),
    ):
        pass
    first.communicate("", timeout=30)
    with output_lock(path), pytest.raises(FileError, match="being written"), output_lock(path):
        pass
    assert not list(tmp_path.rglob(".*lock"))


def test_the_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = hold(path)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    assert (tmp_path / ".out.jsonl.lock").exists()
    with output_lock(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_an_output_is_the_same_output(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "t.jsonl").write_text("")
    (tmp_path / "l.jsonl").symlink_to("t.jsonl")
    for name, link in (("run", "link"), ("t.jsonl", "l.jsonl")):
        with (
            output_lock(tmp_path / name),
            pytest.raises(FileError, match="being written"),
            output_lock(tmp_path / link),
        ):
            pass


def test_a_forked_child_that_outlives_the_run_holds_no_lock(tmp_path: Path) -> None:
    path, context = tmp_path / "out", multiprocessing.get_context("fork")
    done = context.Event()
    with output_lock(path):
        child = context.Process(target=done.wait, args=(30,))
        child.start()
    try:
        with output_lock(path):
            pass
    finally:
        done.set()
        child.join(30)


def test_a_place_without_a_folder_cannot_be_locked(tmp_path: Path) -> None:
    with (
        pytest.raises(FileError, match=r"gone/t\.jsonl: cannot be locked: No such file"),
        output_lock(tmp_path / "gone" / "t.jsonl"),
    ):
        pass


def test_a_file_that_was_deleted_or_replaced_is_not_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with open(path, "wb") as file:
        assert same_file(file.fileno(), path)
        path.unlink()
        assert not same_file(file.fileno(), path)
        path.write_text("other")
        assert not same_file(file.fileno(), path)
