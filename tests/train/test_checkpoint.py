"""Checkpoints: what transformers loads, an exact resume, and whole or not at all."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from treegrpo_cli.config import Config
from treegrpo_cli.errors import FileError
from treegrpo_cli.train.checkpoint import checkpoints, load_checkpoint, remove_old_checkpoints, save_checkpoint
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
    first_check = first.self_checks
    del first
    torch.manual_seed(999)
    second = Trainer(config)
    assert load_checkpoint(path, second) == {"data_position": 5, "note": "ü"}
    assert path.name == "checkpoint-5"
    assert second.step == 5
    assert second.self_checks == first_check
    assert bool(first_check) == (run == "trees")
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
