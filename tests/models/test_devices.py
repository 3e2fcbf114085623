"""`model.dtype` and `model.device`: what `auto` becomes."""

from pathlib import Path

import pytest
import torch
from treegrpo_cli.errors import UserError
from treegrpo_cli.models import drivers
from treegrpo_cli.models.devices import choose_device, choose_dtype
from treegrpo_cli.models.drivers import why_no_cuda
from treegrpo_cli.samplers import resolve_device, resolve_dtype


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", torch.float32), ("cuda", torch.bfloat16), ("cuda:1", torch.bfloat16)]
)
def test_auto_is_bfloat16_on_cuda_and_float32_elsewhere(device: str, expected: torch.dtype) -> None:
    assert choose_dtype("auto", torch.device(device)) == expected
    assert resolve_dtype("auto", device) == str(expected).removeprefix("torch.")


def test_a_dtype_that_is_asked_for_is_taken_on_every_device() -> None:
    for device in map(torch.device, ("cpu", "cuda")):
        assert choose_dtype("float32", device) == torch.float32
        assert choose_dtype("bfloat16", device) == torch.bfloat16


class Machine:
    """A machine with an NVIDIA card of which torch says nothing: its files, and what `nvidia-smi` would answer."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.devices, self.version_file, self._patch = root / "dev", root / "version", patch
        self.devices.mkdir()
        patch.setattr(drivers, "DEVICES", self.devices)
        patch.setattr(drivers, "VERSION_FILE", self.version_file)
        patch.setattr(drivers.shutil, "which", lambda name: None)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "init", self._init)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def _init(self) -> None:
        raise RuntimeError("unknown error\nin two lines")

    def has(self, card: str = "nvidia0", driver: str | None = None) -> None:
        (self.devices / card).touch()
        if driver:
            self.version_file.write_text(
                f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Thu Oct  5 21:00:00 UTC 2023\n"
                "GCC version:  gcc version 12.2.0\n"
            )

    def answers(self, folder: Path, text: str) -> None:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho {text}\n")
        program.chmod(0o755)
        self._patch.setattr(drivers.shutil, "which", lambda name: str(program))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("cuda", "driver", "oldest"), [("13.0", "535.129.03", 580), ("13.2", "579.99", 580), ("12.8", "470.82.01", 525)]
)
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_driver_too_old_for_torch_is_named_and_never_a_run_on_the_cpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str, cuda: str, driver: str, oldest: int
) -> None:
    machine.has(driver=driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError) as raised:
        choose_device(name)
    assert str(raised.value) == (
        f"model.device: the NVIDIA driver is {driver}, and this torch (CUDA {cuda}) needs {oldest} or later: "
        'update the driver, or set model.device = "cpu"'
    )
    assert choose_device("cpu") == torch.device("cpu")


def test_a_card_that_torch_cannot_use_for_another_reason_is_named_with_the_reason(machine: Machine) -> None:
    machine.has(driver="580.65.06")
    with pytest.raises(UserError, match=r"driver 580\.65\.06\) that torch cannot use: unknown error in two lines"):
        choose_device("auto")


def test_the_driver_is_asked_of_nvidia_smi_where_the_kernel_does_not_tell(machine: Machine, tmp_path: Path) -> None:
    machine.has("dxg")  # Windows' subsystem for Linux
    assert why_no_cuda() is None
    machine.answers(tmp_path, "546.33")
    assert "the NVIDIA driver is 546.33" in (why_no_cuda() or "")


@pytest.mark.parametrize("case", ["no card", "", "-1", "NoDevFiles", "torch without CUDA", "seen"])
def test_a_machine_without_a_card_to_use_runs_on_the_cpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    machine.has(card="nvidiactl" if case == "no card" else "nvidia0", driver="470.82.01")
    assert (why_no_cuda() is None) == (case == "no card")
    match case:
        case "" | "-1" | "NoDevFiles":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", case)
        case "torch without CUDA":
            monkeypatch.setattr(torch.version, "cuda", None)
        case "seen":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_no_cuda() is None
    assert choose_device("auto") == torch.device("cuda" if case == "seen" else "cpu")


@pytest.mark.parametrize("visible", ["0", "1,0", "GPU-8932f937", "MIG-1"])
def test_a_card_that_is_named_among_the_visible_is_missed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    machine.has(driver="470.82.01")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert why_no_cuda() is not None


def test_a_card_without_bfloat16_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for name in ("auto", "bfloat16"):
        with pytest.raises(UserError) as raised:
            choose_dtype(name, torch.device("cuda:0"))
        assert str(raised.value) == (
            "model.dtype: Tesla T4 has no bfloat16 (compute capability 7.5, and 8.0 is needed); "
            'set model.dtype = "float32"'
        )
    assert choose_dtype("float32", torch.device("cuda:0")) == torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_a_card_that_is_named_is_the_one_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor:
        device = torch.device("cuda:1")

    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "empty", lambda size, device: Tensor())
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")]


def test_a_cpu_is_one_whatever_its_number() -> None:
    assert choose_device("cpu:7") == torch.device("cpu")
    assert resolve_device("cpu:7") == "cpu"


def test_a_device_that_computes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model\.device: 'meta' knows shapes and no numbers"):
        choose_device("meta")
