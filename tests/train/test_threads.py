"""Threads of an update: all cores of a machine that is ours alone, one beside others, and what the user says before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from treegrpo_cli.train import threads
from treegrpo_cli.train.threads import Threads, Usage, busy_seconds, cores_of_others, num_cores

CPU = torch.device("cpu")


class Machine:
    """A machine of four cores: its clock, and what others and we have computed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock = self.others = self.own = 0.0
        self.counts = True
        self.lines: list[str] = []
        self.set: list[int] = []
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr(threads, "num_cores", lambda: 4)
        patch.setattr(Usage, "now", self._now)
        patch.setattr(threads, "_set_num_threads", self.set.append)
        patch.setattr(torch, "get_num_threads", lambda: 1)

    def _now(self) -> Usage:
        return Usage(self.clock, self.others + self.own if self.counts else None, self.own)

    def passes(self, seconds: float, *, others: float, own: float = 1.0) -> None:
        self.clock += seconds
        self.others += others * seconds
        self.own += own * seconds

    def threads(self, num: int = 0, device: torch.device = CPU) -> Threads:
        return Threads(num, device, self.lines.append)

    def update(self, taken: Threads) -> int:
        """The threads that an update computes with; behind it there is one again."""
        self.set.clear()
        with taken.taken():
            (number,) = self.set
        assert self.set[1:] == [1]
        return number


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_machine_of_ours_alone_gives_all_its_cores_and_one_once_others_compute(machine: Machine) -> None:
    taken = machine.threads()
    machine.passes(10, others=0.1)
    assert machine.update(taken) == 4
    machine.passes(10, others=0.2, own=3.0)
    assert machine.update(taken) == 4
    assert machine.lines == [
        "updates take 4 of 4 cores: nobody else computes here; train.num_threads sets another number"
    ]
    machine.passes(10, others=1.5)
    assert machine.update(taken) == 1
    assert machine.lines[1:] == [
        "updates take 1 of 4 cores: others use 1.5 cores; train.num_threads sets another number"
    ]
    machine.passes(10, others=0.0)
    assert machine.update(taken) == 1  # they may come back
    assert len(machine.lines) == 2


def test_what_is_not_known_yet_is_decided_later(machine: Machine) -> None:
    taken = machine.threads()
    machine.passes(0.1, others=0.0)
    assert machine.update(taken) == 1
    machine.passes(10, others=0.0)
    assert machine.update(taken) == 4


def test_others_from_the_start_or_a_system_that_does_not_count_leave_one(machine: Machine) -> None:
    taken = machine.threads()
    machine.passes(10, others=0.9)
    assert machine.update(taken) == 1
    machine.counts = False
    silent = machine.threads()
    machine.passes(10, others=0.0)
    assert machine.update(silent) == 1
    assert machine.lines == []


def test_the_user_goes_before_the_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    told = machine.threads(num=3)
    on_a_card = machine.threads(device=torch.device("cuda"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    by_environment = machine.threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    machine.passes(10, others=0.0)
    assert [machine.update(each) for each in (told, on_a_card, by_environment)] == [3, 1, 2]


def test_threads_are_really_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)  # as vLLM's engine on a CPU leaves it
    with Threads(before + 1, CPU, print).taken():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_cores_of_others_are_what_all_computed_without_ourselves() -> None:
    assert cores_of_others(Usage(0, 100.0, 10.0), Usage(20, 150.0, 40.0)) == 1.0
    assert cores_of_others(Usage(0, 100.0, 10.0), Usage(20, 110.0, 40.0)) == 0.0  # counts in ticks
    assert cores_of_others(Usage(0, 100.0, 10.0), Usage(0.5, 150.0, 10.2)) is None
    assert cores_of_others(Usage(0, None, 10.0), Usage(20, None, 10.2)) is None


def test_the_systems_files_are_read_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(name: str, text: str) -> Any:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    monkeypatch.setattr(threads.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(threads, "PROC_STAT", written("stat", "cpu  100 20 30 9999 50 6 4 40 7 8\ncpu0 1 2\n"))
    assert busy_seconds() == 2.0  # neither idle nor waiting for a disk; a guest's time stands in user's
    monkeypatch.setattr(threads, "PROC_STAT", tmp_path / "none")
    assert busy_seconds() is None
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):  # two cores of two logical CPUs each
        (tmp_path / f"cpu{cpu}").mkdir()
        (tmp_path / f"cpu{cpu}" / "physical_package_id").write_text("0\n")
        (tmp_path / f"cpu{cpu}" / "core_id").write_text(f"{cpu // 2}\n")
    monkeypatch.setattr(threads, "TOPOLOGY", str(tmp_path / "cpu{}"))
    monkeypatch.setattr(threads, "CGROUP_QUOTA", written("quota", "max 100000\n"))
    assert num_cores() == 2
    monkeypatch.setattr(threads, "CGROUP_QUOTA", written("quota", "150000 100000\n"))
    assert num_cores() == 1
    monkeypatch.setattr(threads, "CGROUP_QUOTA", tmp_path / "none")
    monkeypatch.setattr(threads, "TOPOLOGY", str(tmp_path / "none{}"))
    assert num_cores() == 4
