"""How much memory a device has: the machine's, or what its control group may take of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from treegrpo_cli.models import memory
from treegrpo_cli.models.memory import DeviceMemory, memory_of


def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, **limits: str) -> None:
    """A machine of 1 GiB, and control groups with these limits (`__` stands for a folder)."""
    monkeypatch.setattr(memory, "os", SimpleNamespace(sysconf={"SC_PHYS_PAGES": 1 << 18, "SC_PAGE_SIZE": 4096}.get))
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "CGROUP_OF_THIS_PROCESS", tmp_path / "membership")
    (tmp_path / "membership").write_text(membership)
    for name, limit in limits.items():
        file = tmp_path / name.replace("__", "/").replace("_max", ".max").replace("_limit", ".limit_in_bytes")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")


def test_without_a_limit_it_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "0::/mine\n", mine__memory_max="max")
    assert memory_of(torch.device("cpu")) == DeviceMemory("this machine", 1 << 30, 1 << 30)


def test_a_limit_of_a_group_above_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "0::/pod/mine\n", pod__memory_max="1000", pod__mine__memory_max="5000")
    assert memory_of(torch.device("cpu")) == DeviceMemory("this container", 1000, 1000)


def test_limits_of_the_older_groups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    membership = "9:cpuset:/\n4:cpu,memory:/pod\n0::/\n"
    groups(tmp_path, monkeypatch, membership, memory__pod__memory_limit="777", memory__memory_limit=str(2**63 - 4096))
    assert memory_of(torch.device("cpu")).total == 777


def test_a_machine_without_groups_has_all_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "")
    (tmp_path / "membership").unlink()
    assert memory_of(torch.device("cpu")).total == 1 << 30


def test_of_a_gpu_it_is_what_others_leave_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 24))
    assert memory_of(torch.device("cuda:0")) == DeviceMemory("cuda:0", 24, 10)
