"""Who holds the memory when: rollouts and evaluations while the engine is awake, updates while it sleeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run import parts as parts_module
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers.stepping import Request
from treegrpo_cli.samplers.transformers import TransformersSampler
from treegrpo_cli.train.checkpoint import checkpoints
from treegrpo_cli.train.trainer import Trainer

from tests.runs import small_run

QUIET = Reporter(quiet=True)


class SleepySampler(TransformersSampler):
    """A sampler that sleeps as vLLM does on CUDA, and writes down what it is asked for."""

    events: list[str]

    def add(self, request: Request) -> None:
        self.note("sample")
        super().add(request)

    def note(self, event: str) -> None:
        if self.events[-1:] != [event]:
            self.events.append(event)

    def fall_asleep(self) -> bool:
        self.note("sleep")
        return True

    @contextmanager
    def waking(self) -> Iterator[None]:
        self.note("wake weights")
        yield
        self.note("wake cache")

    def load_weights(self, weights: Iterator[tuple[str, Any]]) -> None:
        self.note("load")
        super().load_weights(weights)

    def free(self) -> None:
        self.note("close")
        super().free()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What sampler and trainer did, in order, each once in a row."""
    events: list[str] = []
    SleepySampler.events = events
    update = Trainer.update

    def noted(self: Trainer, *arguments: Any) -> Any:
        events.append("update")
        return update(self, *arguments)

    def opened(config: Any, *_: Any) -> SleepySampler:
        return SleepySampler(
            config.model.path, dtype="float32", device="cpu", max_model_len=512, max_num_seqs=64, adapter=None
        )

    monkeypatch.setattr(Trainer, "update", noted)
    monkeypatch.setattr(parts_module, "open_sampler", opened)
    return events


STEP = ["sample", "sleep", "update", "wake weights", "load", "wake cache"]


def test_the_engine_sleeps_from_the_scoring_to_the_new_weights_and_evaluates_awake(
    tiny_model_dir: Path, tmp_path: Path, events: list[str]
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"num_steps": 3, "eval_steps": 2})
    train(make_config(settings), QUIET)
    # the evaluations before the first step, behind the second and behind the last run into rollouts beside them
    assert events == ["load", *STEP, *STEP, *STEP, "sample", "close"]


def test_a_resumed_run_sends_weights_to_an_engine_that_is_awake(
    tiny_model_dir: Path, tmp_path: Path, events: list[str]
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"num_steps": 1, "eval_steps": 0})
    train(make_config(settings), QUIET)
    settings["train"]["num_steps"] = 2
    events.clear()
    train(make_config(settings), QUIET, resume=True, named=["train.num_steps"])
    assert events == ["load", *STEP, "close"]


def test_an_update_that_fails_while_the_engine_sleeps_leaves_a_checkpoint_and_a_closed_engine(
    tiny_model_dir: Path, tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def second_fails(self: Trainer, *arguments: Any) -> Any:
        if self.step == 1:
            raise RuntimeError("a kernel failed")
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "update", second_fails)
    settings = small_run(tmp_path, tiny_model_dir, train={"eval_steps": 0})
    with pytest.raises(RuntimeError, match="a kernel failed"):
        train(make_config(settings), QUIET)
    assert events == ["load", *STEP, "sample", "sleep", "close"]
    assert [path.name for path in checkpoints(settings["output_dir"])] == ["checkpoint-1"]
