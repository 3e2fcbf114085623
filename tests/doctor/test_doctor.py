"""`treegrpo doctor` from the command line: what is right, what is wrong in one line, and the report."""

import json
import os
import signal
import time
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from treegrpo_cli.cli import doctor as command
from treegrpo_cli.doctor import attention, engines, report, versions
from treegrpo_cli.doctor.finding import Finding
from treegrpo_cli.models import devices, drivers
from treegrpo_cli.models.memory import DeviceMemory
from treegrpo_cli.run import memory
from treegrpo_cli.samplers import why_no_vllm

from tests.command_line import refused, run
from tests.runs import small_run


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long: engines and attention paths."""
    for module in (engines, attention):
        monkeypatch.setattr(module, "checks", lambda *_: iter(()))


def settings_file(folder: Path, model: Path, **changes: Any) -> Path:
    path = folder / "settings.toml"
    path.write_text(tomli_w.dumps(small_run(folder, model, **changes)))
    return path


def lines_of(output: str, verdict: str) -> list[str]:
    """What stands behind a verdict."""
    return [
        line.strip().removeprefix(verdict).strip() for line in output.splitlines() if line.startswith(f"  {verdict}")
    ]


def test_everything_is_looked_at_and_right(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = settings_file(tmp_path, tiny_model_dir, sampler={"engine": "auto"})
    done = run("doctor", path, "--report", tmp_path / "report.json")
    assert lines_of(done.stdout, "wrong") == []
    assert done.returncode == 0, done.stderr
    right = lines_of(done.stdout, "right")
    subjects = [line.partition(": ")[0] for line in right]
    assert {"python", "torch", "devices", "file", "memory", "data, model, tools, rewards"} <= {*subjects}
    steps = ["start", "log-probabilities", "seeds", "an unchanged update", "a changed update"]
    assert {f"transformers: {step}" for step in steps} <= {": ".join(line.split(": ")[:2]) for line in right}
    if why_no_vllm("cpu") is None:
        steps += ["cached prefixes", "weights from card to card", "end"]
        assert {f"vllm: {step}" for step in steps} <= {": ".join(line.split(": ")[:2]) for line in right}
    paths = [
        f"{path} in {dtype}" for path in ("chains", "runs", "dense", "depth-first") for dtype in ("float32", "bfloat16")
    ]
    assert {*paths} <= {*subjects}
    assert "flex in float32: FlexAttention has no gradient on cpu" in lines_of(done.stdout, "not here")
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["findings"]) == len(right) + len(lines_of(done.stdout, "not here"))
    assert written["settings"]["model"]["path"] == str(tiny_model_dir)


@pytest.mark.usefixtures("quickly")
def test_a_machine_alone_is_looked_at_without_settings() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert "settings" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" right, 0 wrong; 2 cannot be tried here")


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "No such file"), ("[model", "not TOML"), ("[model]\npaht = 1", "model.paht")],
)
def test_settings_that_cannot_be_read_are_a_line(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "settings.toml"
    if text is not None:
        path.write_text(text)
    done = run("doctor", path)
    assert done.returncode == 1
    [line] = lines_of(done.stdout, "wrong")
    assert line.startswith("file: ")
    assert problem in line
    assert done.stderr.count("\n") == done.stderr.count("checking")


@pytest.mark.usefixtures("quickly")
def test_each_problem_of_the_settings_is_a_line(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = settings_file(
        tmp_path, tiny_model_dir, reward={"functions": ["exact_mach"]}, train={"attention_path": "flex"}
    )
    done = run("doctor", path, "--data", "nowhere.jsonl")
    assert done.returncode == 1
    reward, data, flex = lines_of(done.stdout, "wrong")
    assert "exact_mach" in reward
    assert "nowhere.jsonl" in data
    assert "FlexAttention has no gradient on cpu" in flex


@pytest.mark.usefixtures("quickly")
def test_a_model_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = run("doctor", settings_file(tmp_path, tmp_path / "nothing"))
    [line] = lines_of(done.stdout, "wrong")
    assert line.startswith("data, model, tools, rewards: model.path: no such directory")
    assert "memory: the model cannot be read" in lines_of(done.stdout, "not here")


@pytest.mark.usefixtures("quickly")
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = settings_file(tmp_path, tiny_model_dir)
    [line] = lines_of(run("doctor", path, "model.device=nowhere").stdout, "wrong")
    assert line.startswith("data, model, tools, rewards: model.device: 'nowhere' cannot be used here")


@pytest.mark.usefixtures("quickly")
def test_the_folder_of_a_run_stands_for_its_settings(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    settings_file(tmp_path, tiny_model_dir).rename(folder / "config.toml")
    done = run("doctor", folder)
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("quickly")
def test_a_folder_of_no_run_is_a_line_that_asks_for_settings(tiny_model_dir: Path) -> None:
    done = run("doctor", tiny_model_dir)
    assert done.returncode == 1
    [line] = lines_of(done.stdout, "wrong")
    assert line == (
        f"file: {tiny_model_dir}: is a folder without config.toml; give a settings file, or the folder of a run"
    )


@pytest.mark.usefixtures("quickly")
def test_what_takes_long_is_named_while_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LONG_S", 0.0)
    looked = command.Examination.run

    def slowly(self: Any, check: Any) -> list[Finding]:
        time.sleep(0.05)
        return looked(self, check)

    monkeypatch.setattr(command.Examination, "run", slowly)
    assert "still at versions, python ..." in run("doctor").stderr.splitlines()


@pytest.mark.usefixtures("quickly")
def test_too_little_memory_is_a_line(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: DeviceMemory("this machine", 1000, 1000))
    done = run("doctor", settings_file(tmp_path, tiny_model_dir))
    assert done.returncode == 1
    [line] = lines_of(done.stdout, "wrong")
    assert line.startswith("memory: ")
    assert "this machine has 0.0" in line


@pytest.mark.usefixtures("quickly")
def test_a_missing_package_is_a_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "peft":
            raise PackageNotFoundError(name)
        return {"torch": "2.1.0"}.get(name, "5.17.0")

    monkeypatch.setattr(versions, "version", version)
    done = run("doctor")
    assert done.returncode == 1
    wrong = lines_of(done.stdout, "wrong")
    assert "peft: not installed: pip install 'treegrpo[train]'" in wrong
    assert "torch: 2.1.0 is installed, and treegrpo is made for >=2.9" in wrong


def test_nccl_needs_a_card_and_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    [nccl] = [check for check in versions.checks() if check.subject == "nccl"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    [finding] = nccl.find()
    assert (finding.verdict, finding.said) == ("not here", "no CUDA device; trainer ranks on CPUs use gloo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    [finding] = nccl.find()
    assert (finding.verdict, finding.said.partition(",")[0]) == ("not here", "this torch is built without NCCL")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    [finding] = nccl.find()
    assert (finding.verdict, finding.said) == ("right", "2.28.9")


def test_ray_is_said_not_to_be_here_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    [ray] = [check for check in versions.checks() if check.subject == "ray"]
    assert ray.find()[0].verdict == ("right" if find_spec("ray") else "not here")

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", version)
    [finding] = ray.find()
    assert (finding.verdict, finding.said.partition(";")[0]) == ("not here", "not installed")


@pytest.mark.usefixtures("quickly")
def test_a_driver_that_is_too_old_is_a_line_and_the_cpu_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    for module in (drivers, devices):
        monkeypatch.setattr(module, "why_no_cuda", lambda: "the NVIDIA driver is 550.54, update the driver")
    monkeypatch.setattr(engines, "checks", lambda *arguments: asked.append(arguments) or iter(()))
    done = run("doctor")
    assert done.returncode == 1
    assert lines_of(done.stdout, "wrong") == ["driver: the NVIDIA driver is 550.54, update the driver"]
    assert asked[0][2:4] == (torch.device("cpu"), torch.float32)


def test_without_torch_only_versions_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "5.17.0"

    monkeypatch.setattr(versions, "version", version)
    monkeypatch.setattr(versions, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    done = run("doctor")
    assert done.returncode == 1
    assert "torch: not installed: pip install 'treegrpo[train]'" in lines_of(done.stdout, "wrong")
    assert "devices: torch is not installed" in lines_of(done.stdout, "not here")
    assert "engines" not in done.stdout


@pytest.mark.usefixtures("quickly")
def test_the_report_holds_no_secrets(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    monkeypatch.setenv("VLLM_USE_DEEP_GEMM", "shown")
    address = "http://me:hidden@127.0.0.1:9/retrieve"
    path = settings_file(tmp_path, tiny_model_dir, environment={"options": {"retriever_url": address}})
    done = run("doctor", path, "--report", tmp_path / "report.json")
    assert "hidden" not in done.stdout + done.stderr
    text = (tmp_path / "report.json").read_text()
    assert "hidden" not in text
    written = json.loads(text)
    assert written["settings"]["environment"]["options"]["retriever_url"] == "http://***@127.0.0.1:9/retrieve"
    assert written["environment"]["VLLM_USE_DEEP_GEMM"] == "shown"


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere/report.json", "{0}/nowhere: no such folder"),
        ("", "{0}: is a folder; give the name of a file"),
        ("pipe", "{0}/pipe: is not a regular file"),
        ("x" * 220, "the file name is longer than 200 bytes"),
    ],
)
def test_a_report_that_cannot_be_written_is_said_before_anything_is_looked_at(
    tmp_path: Path, name: str, problem: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = run("doctor", "--report", tmp_path / name)
    assert done.stdout == ""
    assert problem.format(tmp_path) in refused(done)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.usefixtures("quickly")
def test_a_report_without_a_name_is_refused() -> None:
    assert "is a folder; give the name of a file" in refused(run("doctor", "--report", ""))


@pytest.mark.usefixtures("quickly")
def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.json").write_text("old")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(report, "write_whole", full)
    done = run("doctor", "--report", tmp_path / "report.json")
    assert done.returncode == 2
    assert (tmp_path / "report.json").read_text() == "old"
    assert done.stderr.splitlines()[-1].endswith("report.json: cannot be written: No space left on device")


@pytest.mark.usefixtures("quickly")
def test_a_stop_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders: list[int] = []

    def look(*_: object) -> list[Finding]:
        folders.append(len(list(tmp_path.glob("treegrpo-doctor-*"))))
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it goes on behind a signal")

    def leave(number: int, last_words: str) -> None:
        folders.append(len(list(tmp_path.glob("treegrpo-doctor-*"))))
        assert last_words == "stopped"
        raise SystemExit(128 + number)

    monkeypatch.setattr(command.Examination, "run", look)
    monkeypatch.setattr(command.signals, "leave", leave)
    assert run("doctor").returncode == 130
    assert folders == [1, 0]
