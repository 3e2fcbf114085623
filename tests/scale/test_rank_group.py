"""Trainer ranks under Ray: the run of one process, whatever dies in the middle of it."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import ray
import torch
from treegrpo_cli.config import Config
from treegrpo_cli.errors import FileError, Stopped, UserError
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.run.local_trainer import LocalTrainer
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.parts import Parts, Say, StepTrainer
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.scale.trainer import RankGroup, open_ranks
from treegrpo_cli.scale.weights import Receiver

from tests.families import relative
from tests.runs import small_run
from tests.scale.engine_runs import until
from tests.scale.rank_runs import die_at_the_next_optimizer_step, on_rank, sent
from tests.steps import make_config, make_step
from tests.tiny import make_tiny_model

NEAR = 1e-6


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32, max_model_len=512)


@pytest.fixture(scope="module")
def config(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    output_dir = str(tmp_path_factory.mktemp("run"))
    return make_config(model_dir, scale={"trainer_ranks": 2}).model_copy(update={"output_dir": output_dir})


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def group(ray_cluster: object, config: Config, said: list[str]) -> Iterator[RankGroup]:
    with contextlib.closing(open_ranks(config, said.append, None, lambda _: {})) as group:
        yield group


@pytest.fixture(scope="module")
def local(config: Config) -> LocalTrainer:
    return LocalTrainer(config)


def assert_same_weights(one: Any, other: Any) -> None:
    """As a whole: where a gradient vanishes but for rounding, Adam moves a weight by the sign of that."""
    (version, weights), (other_version, others) = sent(one), sent(other)
    assert version == other_version
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert relative(weight, others[name]) <= NEAR, name


def assert_same_metrics(one: dict[str, Any], other: dict[str, Any], but: str = "never") -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if re.match(but, name):
            continue
        if isinstance(value, str):
            assert value == other[name], name
        else:
            assert value == pytest.approx(other[name], rel=1e-5, abs=1e-5, nan_ok=True), name


def test_ranks_take_the_steps_of_one_process(group: RankGroup, local: LocalTrainer, said: list[str]) -> None:
    for step in range(3):
        assert_same_metrics(group.update(*make_step(step)), local.update(*make_step(step)))
    assert (group.step, group.is_whole, group.dtype) == (3, True, "float32")
    assert group.packing_s > 0
    assert_same_weights(group, local)
    assert any(line.startswith("training on ") for line in said)
    assert group.trained.adapter is None


def is_held(lock: Any) -> bool:
    """Whether another thread has it."""
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True


def returned_engine() -> Any:
    """The process of an engine that came back: it has nothing but what it is sent."""

    class Returned(Receiver):
        def __init__(self) -> None:
            self.sampler: Any = self

        def update_weights(self, weights: Weights, policy_version: int) -> None:
            self.found = policy_version, {name: tensor.clone() for name, tensor in weights}

        def received(self) -> tuple[int, dict[str, torch.Tensor]]:
            return self.found

    return ray.remote(Returned).options(num_cpus=0).remote()


def test_an_engine_that_comes_back_is_brought_what_ranks_hold_behind_the_update_that_runs(
    group: RankGroup, local: LocalTrainer
) -> None:
    """Where weights go from card to card nothing lies in the store: ranks gather again for one engine."""
    update = group._from_card_to_card([])
    actor = returned_engine()
    update.send_to(actor)
    before, _ = ray.get(actor.received.remote())
    on_rank(group, 0, lambda trainer: trainer.optimizer.register_step_pre_hook(_wait))
    training = threading.Thread(target=group.update, args=make_step(3))
    training.start()
    until(lambda: is_held(group._turn))
    update.send_to(actor)
    version, weights = ray.get(actor.received.remote())
    training.join()
    local.update(*make_step(3))
    assert (before, version) == (3, 4)
    _, expected = sent(local)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert relative(weight, expected[name]) <= NEAR, name
    ray.kill(actor)


def test_a_step_whose_rank_is_killed_is_taken_again(
    group: RankGroup, local: LocalTrainer, said: list[str], tmp_path: Path
) -> None:
    """Killed between two checkpoints, in the middle of an update: what was trained since is trained once more."""
    path = group.save(tmp_path, {"rows": 3})
    said.clear()
    assert_same_metrics(group.update(*make_step(4)), local.update(*make_step(4)))
    before = {on_rank(group, rank, lambda _: os.getpid()) for rank in range(2)}
    on_rank(group, 1, die_at_the_next_optimizer_step)
    assert_same_metrics(group.update(*make_step(5)), local.update(*make_step(5)))
    assert_same_weights(group, local)
    [warning] = [line for line in said if line.startswith("warning: ")]
    assert warning == (
        f"warning: trainer rank 1 has died: all trainer ranks start again from {path.name} and take step 5 once more"
    )
    assert not before & {on_rank(group, rank, lambda _: os.getpid()) for rank in range(2)}
    assert not any(map(is_alive, before))


def test_any_number_of_ranks_goes_on_from_a_checkpoint_of_any_number(
    group: RankGroup, local: LocalTrainer, config: Config, tmp_path: Path
) -> None:
    from_ranks = group.save(tmp_path / "ranks", {"place": 5})
    from_one = local.save(tmp_path / "one", {"place": 6})
    expected = local.update(*make_step(6))
    alone = LocalTrainer(config)
    assert alone.load(from_ranks) == {"place": 5}
    assert_same_metrics(alone.update(*make_step(6)), expected)
    assert_same_weights(alone, local)
    assert_same_metrics(group.update(*make_step(6)), expected)
    assert group.load(from_one) == {"place": 6}
    assert group.step == 6
    assert_same_metrics(group.update(*make_step(6)), expected)
    assert_same_weights(group, local)


def test_what_the_user_is_told_by_a_rank_is_told_in_the_same_line(group: RankGroup, tmp_path: Path) -> None:
    path = group.save(tmp_path, {})
    file = path / "training_state.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileError, match=rf"^{file}: not a whole checkpoint of this run: not JSON") as raised:
        group.load(path)
    assert "\n" not in str(raised.value)
    for rank in range(2):
        on_rank(group, rank, _poison)
    with pytest.raises(UserError, match=r"^step \d+: loss nan, .*stopped before this update") as raised:
        group.update(*make_step(6))
    assert "\n" not in str(raised.value)
    assert group.is_whole


def _poison(trainer: Any) -> None:
    with torch.no_grad():
        for weight in trainer.policy.trained_parameters().values():
            weight.fill_(float("nan"))


class Ranks(Parts):
    """The ranks of a test's run, seen by it; `before` is what happens in front of each update."""

    def __init__(self, before: Callable[[RankGroup], None] = lambda _: None) -> None:
        self.before = before

    def open_trainer(self, config: Config, say: Say, tokenizer: Any) -> StepTrainer:
        group = RankGroup(config, say, tokenizer, lambda _: {})
        update = group.update

        def watched(*args: Any) -> Any:
            self.before(group)
            return update(*args)

        group.update = watched  # type: ignore[method-assign]
        return group


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "run" / "metrics.jsonl").read_bytes().splitlines()]


def test_a_run_that_is_killed_and_stopped_ends_as_one_process_would(
    ray_cluster: object, model_dir: Path, tmp_path: Path
) -> None:
    """Ctrl-C comes in the middle of an update, which is finished; the run goes on in one process."""
    folders = {name: tmp_path / name for name in ("alone", "ranks")}
    for folder in folders.values():
        folder.mkdir()
    changes: dict[str, Any] = {"train": {"num_steps": 3, "save_steps": 2, "eval_steps": 100}}
    train(Config.model_validate(small_run(folders["alone"], model_dir, **changes)), Reporter(quiet=True))

    def interrupt(group: RankGroup) -> None:
        if group.step == 1:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
            on_rank(group, 0, lambda trainer: trainer.optimizer.register_step_pre_hook(_wait))

    on_ranks = changes | {"scale": {"trainer_ranks": 2}}
    settings = small_run(folders["ranks"], model_dir, **on_ranks)
    with pytest.raises(Stopped, match="stopped after step 2; continue with the same command and --resume"):
        train(Config.model_validate(settings), Reporter(quiet=True), parts=Ranks(interrupt))
    resumed = Config.model_validate({**settings, "scale": {}})
    train(resumed, Reporter(quiet=True), resume=True)
    ours, theirs = metrics_of(folders["ranks"]), metrics_of(folders["alone"])
    assert len(ours) == len(theirs) == 5
    for one, other in zip(ours, theirs, strict=True):
        assert_same_metrics(one, other, but="step_time|time/|tokens_per_second/|memory/|engine/|budget/step_seconds")
    assert (folders["ranks"] / "run" / "rank-1.log").exists()


def _wait(*_: Any) -> None:
    time.sleep(0.5)


def is_alive(process: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    return False
