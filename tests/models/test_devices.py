"""The memory that a device took."""

import os
import resource
import sys

import pytest
import torch
from treegrpo_cli.models.devices import peak_memory_bytes


def test_on_a_cpu_the_peak_is_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = peak_memory_bytes(torch.device("cpu"))
    assert 50e6 < taken < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # torch alone takes as much
    for platform, unit in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr(sys, "platform", platform)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(peak * unit, rel=0.1)


def test_on_cuda_the_peak_is_what_torch_allocated_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 + device.index)
    assert peak_memory_bytes(torch.device("cuda", 1)) == 8
