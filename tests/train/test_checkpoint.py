"""Checkpoints: what transformers loads, an exact resume, and whole or not at all."""

import contextlib
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from treegrpo_cli.config import Config
from treegrpo_cli.errors import FileError
from treegrpo_cli.train import checkpoint as checkpoint_module
from treegrpo_cli.train.checkpoint import (
    checkpoints,
    load_checkpoint,
    read_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from treegrpo_cli.train.checkpoint_parts import read_moments, read_training_state
from treegrpo_cli.train.self_check import Disagreement
from treegrpo_cli.train.trainer import Trainer

from tests.steps import make_config, make_step
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32)


def train(trainer: Trainer, steps: range) -> list[dict[str, float]]:
    """Train on forests that depend on the step alone, as a loop that knows its data position would."""
    return [trainer.update(*make_step(step)) for step in steps]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(30)[None]).logits


RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "all weights": {
        "loss": {"kl_coef": 0.01},
        "optimizer": {"weight_decay": 0.1, "schedule": "cosine", "warmup_ratio": 0.3, "learning_rate": 1e-3},
        "train": {"num_epochs": 2, "prompts_per_minibatch": 2},
    },
    "bfloat16": {"model": {"dtype": "bfloat16"}, "optimizer": {"learning_rate": 1e-5}},
    "adapters with dropout": {"model": {"lora_rank": 4, "lora_dropout": 0.3}, "loss": {"kl_coef": 0.01}},
    "trees": {"loss": {"ratio": "turn"}, "train": {"attention_path": "runs"}},
    "adapters in bfloat16": {"model": {"lora_rank": 4, "dtype": "bfloat16"}},
}


@pytest.mark.parametrize("run", RUNS)
def test_ten_steps_equal_five_and_five_after_a_kill(model_dir: Path, tmp_path: Path, run: str) -> None:
    config = make_config(model_dir, **RUNS[run])
    whole = Trainer(config)
    expected = train(whole, range(10))

    first = Trainer(config)
    train(first, range(5))
    path = save_checkpoint(tmp_path, first, {"data_position": 5, "note": "ü"})
    train(first, range(5, 7))  # steps that the kill loses
    first_check = first.paths.checks.found
    del first
    torch.manual_seed(999)
    second = Trainer(config)
    assert load_checkpoint(path, second) == {"data_position": 5, "note": "ü"}
    torch.manual_seed(7)  # as an engine's start does
    assert path.name == "checkpoint-5"
    assert second.step == 5
    assert second.paths.checks.found == first_check
    assert list(first_check) == (["chains", "runs"] if run == "trees" else ["chains"])
    assert train(second, range(5, 10)) == expected[5:]
    resumed = second.policy.network.state_dict()
    for name, weight in whole.policy.network.state_dict().items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_a_checkpoint_with_the_same_logits(tmp_path: Path, tied: bool) -> None:
    trainer = Trainer(make_config(make_tiny_model(tmp_path / "model", hidden=32, tied=tied)))
    train(trainer, range(2))
    path = save_checkpoint(tmp_path, trainer, {})
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.float32
    assert torch.equal(logits(model), logits(trainer.policy.model))
    assert AutoTokenizer.from_pretrained(path).decode([5, 6, 7]) == AutoTokenizer.from_pretrained(
        tmp_path / "model"
    ).decode([5, 6, 7])
    assert not list(path.rglob("*.bin"))
    assert not list(path.rglob("*.pt"))


def test_a_checkpoint_of_adapters_holds_the_merged_model_and_the_adapter(model_dir: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    trainer = Trainer(make_config(model_dir, model={"lora_rank": 4}, optimizer={"learning_rate": 1e-2}))
    train(trainer, range(2))
    path = save_checkpoint(tmp_path, trainer, {})
    adapted = logits(trainer.policy.network)
    merged, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    assert (logits(base) - adapted).abs().max() > 0.1
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, path / "adapter")), adapted)


def test_a_half_written_checkpoint_is_not_seen(model_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_config(model_dir))
    paths = []
    for step in (2, 10):
        trainer.step = step
        paths.append(save_checkpoint(tmp_path, trainer, {}))
    (tmp_path / ".checkpoint-11.partial").mkdir()
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert checkpoints(tmp_path) == paths
    assert checkpoints(tmp_path / "no-such-run") == []


def test_leftovers_of_a_kill_do_not_stop_the_next_checkpoint(model_dir: Path, tmp_path: Path) -> None:
    for leftover in (".checkpoint-0.partial", ".checkpoint-7.partial", ".checkpoint-7.replaced"):
        (tmp_path / leftover / "adapter").mkdir(parents=True)
    trainer = Trainer(make_config(model_dir))
    path = save_checkpoint(tmp_path, trainer, {"turn": 1})
    assert save_checkpoint(tmp_path, trainer, {"turn": 2}) == path
    assert load_checkpoint(path, trainer) == {"turn": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-0"]
    assert not (path / "adapter").exists()


@pytest.mark.parametrize("limit", [100, 20_000, 250_000])
def test_a_full_disk_leaves_the_earlier_checkpoint_whole(model_dir: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for the full disk: config, weights, or moments do not fit."""
    trainer = Trainer(make_config(model_dir))
    train(trainer, range(1))
    first = save_checkpoint(tmp_path, trainer, {})
    train(trainer, range(1, 2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(FileError, match=r"checkpoint-2: .*earlier checkpoints are whole"):
            save_checkpoint(tmp_path, trainer, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [first]
    load_checkpoint(first, trainer)
    assert trainer.step == 1


@pytest.mark.parametrize("damage", ["model.safetensors", "training_state.tensors", "training_state.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_checkpoint_is_refused_in_one_line(model_dir: Path, tmp_path: Path, damage: str, how: str) -> None:
    trainer = Trainer(make_config(model_dir))
    path = save_checkpoint(tmp_path, trainer, {})
    content = (path / damage).read_bytes()
    (path / damage).unlink()
    if how == "cut":
        (path / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match="not a whole checkpoint of this run") as raised:
        load_checkpoint(path, trainer)
    assert "\n" not in str(raised.value)
    assert damage in str(raised.value) or damage == "model.safetensors"


Tensors = dict[str, torch.Tensor]


def without(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(name)


def with_other(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def with_number(name: str, number: float) -> Callable[[Tensors], None]:
    return with_other(name, lambda tensor: tensor.flatten().index_fill(0, torch.tensor([0]), number).view(tensor.shape))


NORM = "model.norm.weight"
WRONG_TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "no moment": (without(f"exp_avg.{NORM}"), f"exp_avg.{NORM} is missing"),
    "no step": (without(f"step.{NORM}"), f"step.{NORM} is missing"),
    "a weight too many": (lambda tensors: tensors.update(more=torch.zeros(1)), "more is not of this model"),
    "another shape": (with_other(f"exp_avg.{NORM}", lambda t: t[:-1]), r"is of shape \[31\], not \[32\]"),
    "another dtype": (with_other(f"exp_avg_sq.{NORM}", torch.Tensor.double), "is torch.float64, not torch.float32"),
    "NaN": (with_number(f"exp_avg.{NORM}", float("nan")), "numbers that are not finite"),
    "infinity": (with_number(f"exp_avg_sq.{NORM}", float("inf")), "numbers that are not finite"),
    "a negative square": (with_number(f"exp_avg_sq.{NORM}", -1.0), "numbers below 0"),
    "step 0": (with_number(f"step.{NORM}", 0.0), f"step.{NORM} is 0.0"),
    "half a step": (with_number(f"step.{NORM}", 1.5), f"step.{NORM} is 1.5"),
}


@pytest.fixture(scope="module")
def trained(model_dir: Path) -> Trainer:
    trainer = Trainer(make_config(model_dir))
    train(trainer, range(1))
    return trainer


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_moments_that_are_not_the_runs_are_named_with_their_file(trained: Trainer, tmp_path: Path, wrong: str) -> None:
    change, said = WRONG_TENSORS[wrong]
    file = save_checkpoint(tmp_path, trained, {}) / "training_state.tensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(FileError, match=rf"^{file}: not a whole checkpoint of this run: .*{said}"):
        read_checkpoint(file.parent, trained)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("step", "1", "step is '1'"),
        ("step", True, "step is True"),
        ("step", -1, "step is -1"),
        ("step", 2, "it is of step 2"),
        ("moved", {}, "moved is no list of weights"),
        ("moved", [1], "moved is no list of weights"),
        ("moved", [], "exp_avg.* is not of this model"),
        ("moved", ["lm_head.bias"], "lm_head.bias is no weight that is trained"),
        ("state", [], "state is no table"),
        ("self_checks", [], "self_checks is no table"),
        ("self_checks", {"runs": 1}, "self_checks.runs is no difference and refusal"),
        ("self_checks", {"runs": {"difference": 1e-7}}, "self_checks.runs is no difference and refusal"),
        ("self_checks", {"runs": {"difference": "0", "refusal": None}}, "self_checks.runs is no difference"),
        ("self_checks", {"runs": {"difference": 0.0, "refusal": 1}}, "self_checks.runs is no difference"),
        (
            "self_checks",
            {"runs": {"difference": 0, "refusal": None, "longest": -1}},
            "self_checks.runs is no difference",
        ),
    ],
)
def test_a_state_that_is_not_the_runs_is_named_with_its_file(
    trained: Trainer, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    file = save_checkpoint(tmp_path, trained, {}) / "training_state.json"
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | {key: value}))
    with pytest.raises(FileError, match=rf"^{file.parent}.*: not a whole checkpoint of this run: .*{said}") as raised:
        read_checkpoint(file.parent, trained)
    assert "\n" not in str(raised.value)


def test_a_check_without_the_length_of_its_paths_is_made_again(trained: Trainer, tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path, trained, {}) / "training_state.json"
    checks = {"self_checks": {"runs": {"difference": 1e-7, "refusal": None}}}
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | checks))
    assert read_checkpoint(file.parent, trained).saved.self_checks == {"runs": Disagreement(1e-7, None, longest=0)}


@pytest.mark.parametrize("is_said", [True, False])
def test_paths_are_checked_again_where_a_run_goes_on_elsewhere(trained: Trainer, tmp_path: Path, is_said: bool) -> None:
    file = save_checkpoint(tmp_path, trained, {}) / "training_state.json"
    resumed, saved = Trainer(trained.config), orjson.loads(file.read_bytes())
    load_checkpoint(file.parent, resumed)
    assert resumed.paths.checks.found == trained.paths.checks.found != {}
    where = saved.pop("checked_on")
    file.write_bytes(orjson.dumps(saved | ({"checked_on": where.replace("cpu", "cuda")} if is_said else {})))
    load_checkpoint(file.parent, resumed)
    assert resumed.paths.checks.found == {}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b"{" + b" " * (1 << 26) + b"}"], ids=range(6)
)
def test_what_is_no_state_at_all_is_refused(trained: Trainer, tmp_path: Path, content: bytes) -> None:
    file = save_checkpoint(tmp_path, trained, {}) / "training_state.json"
    file.write_bytes(content)
    with pytest.raises(FileError, match=rf"^{file}: not a whole checkpoint of this run: "):
        read_checkpoint(file.parent, trained)


def test_weights_that_are_no_numbers_are_refused_and_reading_changes_nothing(trained: Trainer, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, trained, {})
    before = {name: weight.clone() for name, weight in trained.policy.model.state_dict().items()}
    weights = load_file(path / "model.safetensors")
    with_number("model.norm.weight", float("nan"))(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileError, match=r"model\.norm\.weight has numbers that are not finite"):
        read_checkpoint(path, trained)
    assert trained.step == 1
    assert len(trained.optimizer.state) == len(trained.policy.trained_parameters())
    for name, weight in trained.policy.model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("wrong", ["missing", "too many", "another shape"])
def test_an_adapter_that_is_not_the_runs_is_named_with_its_file(model_dir: Path, tmp_path: Path, wrong: str) -> None:
    trainer = Trainer(make_config(model_dir, model={"lora_rank": 2}))
    file = save_checkpoint(tmp_path, trainer, {}) / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    if wrong == "missing":
        del weights[name]
    elif wrong == "too many":
        weights["more"] = weights[name].clone()
    else:
        weights[name] = weights[name][:1].contiguous()
    save_file(weights, file)
    with pytest.raises(FileError, match=rf"^{file}: not a whole checkpoint of this run: "):
        read_checkpoint(file.parents[1], trainer)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing cleans up."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the process die at the `number`-th operation on names, counted from 0; a removal dies half-way."""
    left = iter(range(number))

    def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                if operation is shutil.rmtree:
                    (args[0] / "training_state.tensors").unlink(missing_ok=True)
                raise Killed
            return operation(*args, **kwargs)

        return call

    for module, name in ((os, "rename"), (os, "fsync"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "unlink")):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))


@pytest.mark.parametrize("resaved", [True, False])
def test_whenever_a_kill_comes_there_is_a_whole_checkpoint(
    trained: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resaved: bool
) -> None:
    """One checkpoint is kept; the step is saved again, or the next one is and the old one removed."""
    monkeypatch.setattr(checkpoint_module, "write_model", lambda folder, *_: (folder / "config.json").write_text("{}"))
    monkeypatch.setattr(trained, "step", 1)
    first = save_checkpoint(tmp_path / "first", trained, {"saved": 1})
    monkeypatch.setattr(trained, "step", 1 if resaved else 2)
    for number in range(1000):
        folder = tmp_path / str(number)
        shutil.copytree(first.parent, folder)
        with monkeypatch.context() as context:
            kill_at(context, number)
            try:
                save_checkpoint(folder, trained, {"saved": 2})
                remove_old_checkpoints(folder, 1)
                break
            except Killed:
                pass
        state = assert_newest_is_whole(folder, trained)
        shutil.copytree(folder, again := tmp_path / f"{number}-again")
        with monkeypatch.context() as context, contextlib.suppress(Killed):
            kill_at(context, 2)  # the next start is killed as well
            save_checkpoint(again, trained, {"saved": 2})
        assert assert_newest_is_whole(again, trained) >= state
        save_checkpoint(folder, trained, {"saved": 3})
        remove_old_checkpoints(folder, 1)
        assert assert_newest_is_whole(folder, trained) == 3
        assert len(list(folder.iterdir())) == 1
    assert number > 8
    assert [path.name for path in folder.iterdir()] == [f"checkpoint-{trained.step}"]


def assert_newest_is_whole(folder: Path, trainer: Trainer) -> int:
    newest = checkpoints(folder)[-1]
    saved = read_training_state(newest)
    read_moments(newest / "training_state.tensors", trainer.policy.trained_parameters(), saved.moved)
    assert (newest / "config.json").exists()
    return saved.state["saved"]


def test_a_link_is_no_checkpoint_and_what_it_points_to_stays(trained: Trainer, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    kept = save_checkpoint(elsewhere, trained, {})
    run.mkdir()
    for name in ("checkpoint-0", "checkpoint-1", ".checkpoint-4.partial", ".checkpoint-5.replaced"):
        (run / name).symlink_to(kept)
    assert checkpoints(run) == []
    path = save_checkpoint(run, trained, {"own": True})
    assert not path.is_symlink()
    remove_old_checkpoints(run, 1)
    assert checkpoints(run) == [path]
    assert (run / "checkpoint-0").is_symlink()
    assert (kept / "model.safetensors").exists()
    assert read_checkpoint(path, trained).saved.state == {"own": True}


def test_a_checkpoint_of_another_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    other = Config.model_validate({"model": {"path": str(make_tiny_model(tmp_path / "m", hidden=64))}})
    path = save_checkpoint(tmp_path, Trainer(make_config(model_dir)), {})
    with pytest.raises(FileError, match="not a whole checkpoint of this run"):
        load_checkpoint(path, Trainer(other))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "training_state.json").write_text("{}")
    remove_old_checkpoints(tmp_path, 0)
    assert len(checkpoints(tmp_path)) == 4
    remove_old_checkpoints(tmp_path, 5)
    assert len(checkpoints(tmp_path)) == 4
    remove_old_checkpoints(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_a_checkpoint_keeps_the_chat_template_of_the_settings(model_dir: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    trainer = Trainer(make_config(model_dir, model={"chat_template": template}))
    path = save_checkpoint(tmp_path, trainer, {})
    assert AutoTokenizer.from_pretrained(path).chat_template == template
