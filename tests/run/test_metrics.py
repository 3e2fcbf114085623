"""metrics.jsonl across kills and resumes, and the loggers beside it."""

import json
import math
from pathlib import Path

import pytest
from treegrpo_cli.errors import FileError
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
    assert events.Tags()["scalars"] == ["reward"]  # text is no scalar
    assert events.Tags()["tensors"] == []
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [
        (1, 0.25),
        (2, 0.5),
        (3, 2.75),
        (4, 3.0),
    ]
