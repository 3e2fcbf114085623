"""Checkpoints in several files: whoever wrote them, any number of ranks goes on from them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from treegrpo_cli.errors import FileError
from treegrpo_cli.train import tensor_files
from treegrpo_cli.train.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from treegrpo_cli.train.ranks import ALONE, Ranks
from treegrpo_cli.train.tensor_files import deal, files_of, write_files
from treegrpo_cli.train.trainer import Trainer

from tests.checkpoint_processes import NUM_STEPS, TABLES, NoTokenizer, go_on, take_a_step, trainer_of
from tests.families import FAMILIES, OTHERS, relative, save_model
from tests.steps import make_config, make_step
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32)


@pytest.fixture(scope="module")
def trained(model_dir: Path) -> Trainer:
    trainer = Trainer(make_config(model_dir))
    trainer.update(*make_step(0))
    return trainer


@pytest.fixture
def in_parts(trained: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tensor_files, "MAX_FILE_BYTES", 50_000)
    return save_checkpoint(tmp_path, trained, {"place": 7})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(30)[None]).logits
    return found


class OneOf(Ranks):
    """A rank that meets nobody: what is gathered is there already."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_write_each_tensor_once_and_share_the_files_between_them(tmp_path: Path, size: int) -> None:
    tensors = {f"layer.{number}": torch.full((10 + number,), float(number)) for number in range(9)}
    num_bytes = {name: tensor.nbytes for name, tensor in tensors.items()}
    written: list[set[Path]] = []
    for rank in range(size):
        before = set(tmp_path.iterdir())
        where = write_files(tmp_path, "w.tensors", num_bytes, iter(tensors.items()), OneOf(rank, size))
        written.append(set(tmp_path.iterdir()) - before)
    assert all(written)
    files = files_of(tmp_path, "w.tensors")
    assert sum(len(files_of_rank) for files_of_rank in written) == len(files) >= size
    stored = {name: (file.name, tensor) for file in files for name, tensor in load_file(file).items()}
    assert {name: file for name, (file, _) in stored.items()} == where
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, (_, tensor) in stored.items())


def test_a_tensor_that_is_larger_than_a_file_may_be_is_one_alone() -> None:
    assert deal({"a": 1, "b": 90, "c": 1, "d": 1}, 10) == [["a"], ["b"], ["c", "d"]]
    assert deal({}, 10) == [[]]


def test_a_run_goes_on_from_a_checkpoint_of_many_files(trained: Trainer, in_parts: Path) -> None:
    assert len(files_of(in_parts, "training_state.tensors")) > 2
    resumed = Trainer(trained.config)
    assert load_checkpoint(in_parts, resumed) == {"place": 7}
    shapes: Any = {"num_prompts": 2}
    other = Trainer(trained.config)
    other.update(*make_step(0))
    assert resumed.update(*make_step(1, **shapes)) == other.update(*make_step(1, **shapes))
    for name, weight in other.policy.model.state_dict().items():
        assert torch.equal(resumed.policy.model.state_dict()[name], weight), name


def test_transformers_loads_a_model_of_many_files(trained: Trainer, in_parts: Path) -> None:
    index = json.loads((in_parts / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(in_parts)), logits(trained.policy.model))


FUSED = {name: config for name, config in (FAMILIES | OTHERS).items() if name in ("qwen3-moe", "mixtral")}


@pytest.mark.parametrize("family", FUSED)
def test_experts_that_are_computed_in_one_piece_are_stored_as_the_library_stores_them(
    tmp_path: Path, family: str
) -> None:
    """Such a model's own names are not the stored ones; resumed, it is the same again."""
    model_dir = save_model(FUSED[family], tmp_path / "model")
    config = make_config(model_dir)
    trainer = Trainer(config, tokenizer=NoTokenizer())
    path = save_checkpoint(tmp_path, trainer, {})
    before = load_file(model_dir / "model.safetensors")
    after = load_file(path / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        for weight in trainer.policy.trained_parameters().values():
            weight.zero_()
    load_checkpoint(path, trainer)
    assert torch.equal(logits(trainer.policy.model), logits(AutoModelForCausalLM.from_pretrained(model_dir)))


def test_a_file_that_is_missing_or_there_twice_is_named(trained: Trainer, in_parts: Path) -> None:
    files = files_of(in_parts, "training_state.tensors")
    twice = in_parts / "training_state-99999-of-99999.tensors"
    shutil.copy(files[1], twice)
    with pytest.raises(FileError, match=rf"^{twice}: not a whole checkpoint of this run: .* is there twice"):
        read_checkpoint(in_parts, trained)
    twice.unlink()
    files[1].unlink()
    with pytest.raises(FileError, match=r"not a whole checkpoint of this run: .* is missing") as raised:
        read_checkpoint(in_parts, trained)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_whose_model_lacks_a_file_is_refused(trained: Trainer, in_parts: Path) -> None:
    next(iter(sorted(in_parts.glob("model-*.safetensors")))).unlink()
    with pytest.raises(FileError, match=rf"^{in_parts}: not a whole checkpoint of this run: .* is missing"):
        read_checkpoint(in_parts, trained)


def test_a_model_that_vouches_for_another_shape_is_refused(trained: Trainer, in_parts: Path) -> None:
    [file] = [path for path in in_parts.glob("model-*.safetensors") if "model.norm.weight" in load_file(path)]
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(FileError, match=rf"^{file}: .*model\.norm\.weight is of shape \[31\], not \[32\]"):
        read_checkpoint(in_parts, trained)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two and three ranks have left; before them, one process has saved `one/` of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny_model(folder / "tiny", hidden=32)
    config = FAMILIES["qwen3-moe"]
    config.vocab_size = 320
    save_model(config, folder / "moe")
    for case in TABLES:
        alone = trainer_of(case, folder, ALONE)
        for step in range(NUM_STEPS):
            alone.update(*make_step(step))
        save_checkpoint(folder / case / "one", alone, {"saved by": 1})
        take_a_step(alone, {"saved by": 1}, folder / case / "after-1-one")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint_processes", str(folder)], capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    return folder


Left = tuple[dict[str, Any], dict[str, torch.Tensor]]


def left_by(folder: Path, case: str, size: int, written_by: str) -> Left:
    place = folder / case / f"after-{size}-{written_by}"
    return json.loads(place.with_suffix(".json").read_text()), load_file(place.with_suffix(".safetensors"))


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize(("size", "written_by", "by"), [(2, "one", 1), (3, "one", 1), (3, "two", 2), (1, "two", 2)])
def test_the_next_step_is_that_of_who_wrote_the_checkpoint_and_went_on(
    folder: Path, case: str, size: int, written_by: str, by: int
) -> None:
    if size == 1:
        go_on(case, folder, written_by, ALONE)
    found, weights = left_by(folder, case, size, written_by)
    expected, wanted = left_by(folder, case, by, written_by)
    tolerance = 1e-3 if "bfloat16" in case else 1e-6
    assert found["state"] == expected["state"] == {"saved by": by}
    assert found["metrics"].keys() == expected["metrics"].keys()
    for name, value in expected["metrics"].items():
        near = value if isinstance(value, str) else pytest.approx(value, rel=10 * tolerance, abs=10 * tolerance)
        assert found["metrics"][name] == near, name
    assert weights.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert relative(weights[name], weight) <= tolerance, name


@pytest.mark.parametrize("case", TABLES)
def test_one_process_has_the_weights_of_three_ranks_to_the_bit(folder: Path, case: str) -> None:
    trainer = trainer_of(case, folder, ALONE)
    assert load_checkpoint(folder / case / "three" / f"checkpoint-{NUM_STEPS + 1}", trainer) == {"saved by": 3}
    sent = left_by(folder, case, 3, "two")[1]
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, sent[name]), name


@pytest.mark.parametrize("case", TABLES)
def test_transformers_loads_what_ranks_wrote(folder: Path, case: str) -> None:
    path = folder / case / "three" / f"checkpoint-{NUM_STEPS + 1}"
    model, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    sent = left_by(folder, case, 3, "two")[1]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, sent[name]), name
    assert len(list(path.glob("model-*.safetensors"))) >= 3
    assert (path / "adapter" / "adapter_model.safetensors").exists() == ("adapters" in case)


def test_a_full_disk_of_one_rank_leaves_the_earlier_checkpoint_and_tells_all_ranks(folder: Path) -> None:
    found = json.loads((folder / "full.json").read_text())
    assert found["told"] == [1.0, 1.0]
    assert found["left"] == [f"checkpoint-{NUM_STEPS + 1}"]
    assert found["said"].startswith("ElsewhereError: ")


def test_a_disk_that_takes_no_file_at_all_leaves_no_rank_waiting_for_weights(folder: Path) -> None:
    first, second = (json.loads((folder / f"full-at-once-{rank}.json").read_text()) for rank in (0, 1))
    assert first.startswith("FileError: ")
    assert second.startswith("ElsewhereError: ")
    assert list((folder / "full-at-once").iterdir()) == []


def test_a_number_that_is_none_in_the_rows_of_one_rank_stops_all_of_them(folder: Path) -> None:
    found = [json.loads((folder / f"damaged-{rank}.json").read_text()) for rank in range(3)]
    kinds = [one["said"].split(":")[0] for one in found]
    assert kinds == ["ElsewhereError", "ElsewhereError", "FileError"]
    assert "exp_avg.model.norm.weight has numbers that are not finite" in found[2]["said"]
    assert [one["step"] for one in found] == [0, 0, 0]
