"""metrics.jsonl across kills and resumes, and the loggers beside it."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.run.metrics import MetricsLog


def test_every_step_is_one_json_object_and_in_the_file_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.log(1, {"loss": 0.1, "reward": 1.0})
    log.log(2, {"loss": math.nan})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    log.close()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.1, "reward": 1.0},
        {"step": 2, "loss": None},
    ]


def test_a_metric_of_text_is_text_in_the_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.log(1, {"tree/attention_path": "depth-first", "loss": 0.5})
    log.close()
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "tree/attention_path": "depth-first", "loss": 0.5}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FileError, match=r"metrics\.jsonl: "):
        MetricsLog(tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_logger_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"report_to: {name} is not installed; pip install {name}"):
        MetricsLog(tmp_path, [name])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_logger_gets_config_and_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls: list[tuple[object, ...]] = []
    package = ModuleType(name)
    package.init = lambda **kwargs: calls.append(("init", kwargs))  # type: ignore[attr-defined]
    package.log = lambda metrics, step: calls.append(("log", metrics, step))  # type: ignore[attr-defined]
    package.finish = lambda: calls.append(("finish",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, package)
    log = MetricsLog(tmp_path, [name], {"seed": 3})
    log.log(1, {"reward": 0.5})
    log.close()
    assert calls == [
        ("init", {"project": "treegrpo", "name": tmp_path.name, "config": {"seed": 3}}),
        ("log", {"reward": 0.5}, 1),
        ("finish",),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, resumed in ((range(1, 5), None), (range(3, 5), 2)):
        log = MetricsLog(tmp_path, ["tensorboard"], resumed_step=resumed)
        for step in steps:
            log.log(step, {"tree/attention_path": "runs", "reward": step / 4 + (resumed or 0)})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward"]  # it takes no text
    assert events.Tags()["tensors"] == []
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [
        (1, 0.25),
        (2, 0.5),
        (3, 2.75),
        (4, 3.0),
    ]
