"""What stands behind `model.path`, and how it can be broken: one line that names the setting, whoever reads it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.pretrained import load_tokenizer
from treegrpo_cli.samplers.transformers import TransformersSampler
from treegrpo_cli.train.policy import load_model

WEIGHTS = "model.safetensors"


def cut_short(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:5000])


def pickle_instead(path: Path) -> None:
    torch.save(load_file(path / WEIGHTS), path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()


def one_weight_less(path: Path) -> None:
    weights = load_file(path / WEIGHTS)
    del weights["model.norm.weight"]
    save_file(weights, path / WEIGHTS, metadata={"format": "pt"})


def half_a_config(path: Path) -> None:
    (path / "config.json").write_text('{"model')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, "incomplete metadata"),
        (pickle_instead, "no file named model.safetensors"),
        (one_weight_less, r"1 weights are missing, model\.norm\.weight"),
        (half_a_config, "not a valid JSON file"),
        (shutil.rmtree, "no such directory"),
    ],
)
def test_a_spoilt_model_is_named_by_trainer_and_sampler_alike(
    tiny_model_dir: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    path = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    spoil(path)
    with pytest.raises(UserError, match=rf"model\.path: .*{message}") as trained:
        load_model(path)
    with pytest.raises(UserError, match=rf"model\.path: .*{message}"):
        TransformersSampler(str(path), dtype="float32", device="cpu", max_model_len=64, max_num_seqs=1)
    assert "\n" not in str(trained.value)


def test_half_a_tokenizer_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.path: cannot load a tokenizer from"):
        load_tokenizer(path)


def test_a_folder_without_whole_safetensors_is_refused_before_an_engine_reads_it(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    from treegrpo_cli.models.pretrained import check_weights

    check_weights(tiny_model_dir)
    check_weights("some/hub-name")
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        check_weights(tmp_path)
    weights = (tiny_model_dir / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model.path: cannot load a model"):
        check_weights(tmp_path)
