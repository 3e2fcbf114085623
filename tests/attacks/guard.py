"""A function + many inputs -> what went wrong: each runs in a child process with limits on time and memory.

Right is an answer, or a `UserError` of one line. Wrong is any other exception, a child that dies, an
input that takes more than `MAX_SECONDS`, or more than `MAX_BYTES` beyond what the child had at first.
"""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from treegrpo_cli.errors import Problems, UserError

MAX_SECONDS = 20.0
MAX_BYTES = 3 << 30


@dataclass(frozen=True)
class Finding:
    """Input number `number` was not survived."""

    number: int
    what: str


def run_guarded(attack: Callable[[int], None], numbers: range) -> Iterator[Finding]:
    """Run `attack(number)` for each number; yield what was found. A child that dies is replaced."""
    fork = multiprocessing.get_context("fork")
    left = list(numbers)
    while left:
        ours, theirs = fork.Pipe()
        child = fork.Process(target=_work, args=(attack, left, theirs), daemon=True)
        child.start()
        theirs.close()
        done, findings = _watch(ours, left)
        yield from findings
        child.kill()
        child.join()
        ours.close()
        left = left[done:]


def _watch(pipe: Connection, numbers: list[int]) -> tuple[int, list[Finding]]:
    """Return how many inputs are dealt with, a fatal one included, and the findings."""
    findings: list[Finding] = []
    for done, number in enumerate(numbers):
        if not pipe.poll(MAX_SECONDS):
            return done + 1, [*findings, Finding(number, f"took more than {MAX_SECONDS:g} s")]
        try:
            what = pipe.recv()
        except EOFError:
            return done + 1, [*findings, Finding(number, "the process died")]
        findings += [Finding(number, what)] if what else []
    return len(numbers), findings


def _work(attack: Callable[[int], None], numbers: list[int], pipe: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        pipe.send(_outcome(attack, number))


def _outcome(attack: Callable[[int], None], number: int) -> str:
    try:
        attack(number)
    except UserError as error:
        return _complaint(error)
    except BaseException as error:  # whatever comes out is a finding
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    return ""


def _complaint(error: UserError) -> str:
    """What is wrong with the lines that a user would read, or nothing."""
    lines = error.lines if isinstance(error, Problems) else (str(error),)
    if not all(map(str.strip, lines)):
        return "an error without words"
    if any("\n" in line for line in lines):
        return f"an error of several lines: {lines[0][:200]!r}"
    return ""
