"""A short run of the fuzzer and of the killer, and proof that both see what they look for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from treegrpo_cli.errors import UserError

from tests.attacks import guard, kill
from tests.attacks.targets import KINDS

ROOT = Path(__file__).parents[2]


def test_damaged_and_hostile_inputs_of_every_kind_are_read_or_refused_in_a_line() -> None:
    command = [sys.executable, "-m", "tests.attacks.fuzz", "--count", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(KINDS)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst"])
def test_a_rollout_that_is_ended_again_and_again_loses_nothing(tmp_path: Path, ending: str) -> None:
    arena = kill.Arena(tmp_path, "transformers", cold=False)
    ended = kill.attack(arena, kill.Rollout(arena, ending), ["kill", "int", "term,term"], count=3, seed=1)
    assert ended >= 3
    assert arena.findings == []


def test_a_training_that_is_ended_again_and_again_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    arena = kill.Arena(tmp_path, "transformers", cold=False)
    ended = kill.attack(arena, kill.Training(arena), ["kill", "term", "int,int"], count=3, seed=1)
    assert ended >= 3
    assert arena.findings == []


def misbehave(number: int) -> None:
    """Input 0 is survived, each of the others is a finding of its own kind."""
    match number:
        case 1:
            raise KeyError("a bug")
        case 2:
            raise UserError()
        case 3:
            os._exit(1)
        case 4:
            time.sleep(60)
        case 5:
            bytearray(1 << 34)


def test_the_guard_sees_bugs_deaths_hangs_and_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_SECONDS", 1.0)
    found = {finding.number: finding.what for finding in guard.run_guarded(misbehave, range(7))}
    assert found.keys() == {1, 2, 3, 4, 5}
    assert [found[number].split()[0] for number in (1, 2, 5)] == ["KeyError:", "an", "MemoryError:"]
    assert (found[3], found[4]) == ("the process died", "took more than 1 s")
