"""What stands behind `model.path`, and how it can be broken: one line that names the setting, whoever reads it."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from treegrpo_cli.errors import UserError
from treegrpo_cli.models import folder
from treegrpo_cli.models.pretrained import (
    check_weight_files,
    load_causal_lm,
    load_tokenizer,
    read_model_config,
    shape_of_causal_lm,
)
from treegrpo_cli.samplers.transformers import TransformersSampler
from treegrpo_cli.train.networks import load_model

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
    check_weight_files(tiny_model_dir)
    check_weight_files("some/hub-name")
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        check_weight_files(tmp_path)
    weights = (tiny_model_dir / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model.path: cannot load a model"):
        check_weight_files(tmp_path)


def test_a_tokenizer_that_cannot_be_used_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    for limit in ("many", {}):
        edit(path / "tokenizer_config.json", model_max_length=limit)
        with pytest.raises(UserError, match=r"model\.path: cannot load a tokenizer from"):
            load_tokenizer(path)


@pytest.fixture
def copied(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copied"))


def edit(file: Path, **changes: Any) -> None:
    table = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(table | changes))


CODE = """
from pathlib import Path
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
Path({marker!r}).write_text("ran")
class Config(PreTrainedConfig):
    model_type = "of-its-own"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("model_type", ["of-its-own", "qwen3"])
def test_code_from_a_models_folder_never_runs_whatever_is_answered(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    marker = tmp_path / "marker"
    (copied / "code.py").write_text(CODE.format(marker=str(marker)))
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edit(copied / "config.json", model_type=model_type, auto_map=names)
    edit(copied / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]})
    edit(copied / "tokenizer_config.json", tokenizer_class="Tokenizer" if model_type != "qwen3" else "Qwen2Tokenizer")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    readers: list[Callable[[Path], Any]] = [
        read_model_config,
        load_tokenizer,
        shape_of_causal_lm,
        lambda path: load_causal_lm(path, torch.float32),
    ]
    for read in readers:
        if model_type == "qwen3":
            read(copied)  # the library's own class
        else:
            with pytest.raises(
                UserError, match=r"code from its own folder \(auto_map\), and such code is never run"
            ) as raised:
                read(copied)
            assert "\n" not in str(raised.value)
    assert sys.stdin.read() == "y\n" * 20
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", r"'pytorch_model.bin' is no \*.safetensors of this folder"),
        ("../model.safetensors", r"'../model.safetensors' is no \*.safetensors of this folder"),
        ("/tmp/model.safetensors", r"'/tmp/model.safetensors' is no \*.safetensors of this folder"),
        ("other.safetensors", "'other.safetensors' is missing"),
        (7, "weight_map is no table of files"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_an_index_names_safetensors_of_its_folder_and_nothing_else(
    copied: Path, file: Any, said: str, beside: bool
) -> None:
    torch.save(load_file(copied / WEIGHTS), copied / "pytorch_model.bin")
    edit(copied / "model.safetensors.index.json", weight_map={"model.norm.weight": file})
    if not beside:
        (copied / WEIGHTS).unlink()
    for read in (check_weight_files, lambda path: load_causal_lm(path, torch.float32)):
        with pytest.raises(UserError, match=rf"model\.path: .*model\.safetensors\.index\.json: {said}"):
            read(copied)


def test_a_model_in_several_files_is_read(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = load_causal_lm(tiny_model_dir, torch.float32)
    whole.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(folder.weight_files(tmp_path)) > 1
    check_weight_files(tmp_path)
    weights = load_causal_lm(tmp_path, torch.float32).state_dict()
    for name, weight in whole.state_dict().items():
        assert torch.equal(weights[name], weight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 2**31}, r"config\.json asks for [\d,]+ weights, and its safetensors have [\d,]+ bytes"),
        ({"hidden_size": 2**20}, r"config\.json asks for [\d,]+ weights"),
        ({"hidden_size": 2**40, "vocab_size": 2**40}, "model.path: cannot load a model"),
        ({"intermediate_size": 256}, r"of shape \[\d+, \d+\], and its safetensors have \[\d+, \d+\]"),
        ({"num_hidden_layers": 10**6}, r"config\.json: num_hidden_layers = 1,000,000 is more than 1,000"),
        ({"num_labels": 10**9}, r"config\.json: num_labels = 1,000,000,000 is more than 1,000"),
        ({"model_type": "gpt_neo", "attention_types": [[["global"], 10**9]]}, "attention_types = 1,000,000,000 is"),
        ({"transformers_weights": "pytorch_model.bin"}, "transformers_weights is not model.safetensors"),
    ],
)
def test_a_configuration_that_the_weights_cannot_fill_is_refused_before_memory_is_asked_for(
    copied: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it is built"))
    edit(copied / "config.json", **changes)
    for read in (shape_of_causal_lm, lambda path: load_causal_lm(path, torch.float32)):
        with pytest.raises(UserError, match=said) as raised:
            read(copied)
        assert "\n" not in str(raised.value)


def grow(file: Path) -> None:
    os.truncate(file, folder.MAX_TEXT_BYTES + 1)


def nest(file: Path) -> None:
    file.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def digits(file: Path) -> None:
    file.write_text('{"model_type": "qwen3", "vocab_size": ' + "9" * 5000 + "}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("spoil", [grow, nest, fifo, digits])
def test_a_file_without_end_is_refused_in_one_line(copied: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(copied / name)
    read = read_model_config if name == "config.json" else load_tokenizer
    with pytest.raises(UserError, match=r"model\.path: cannot load") as raised:
        read(copied)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_what_lies_beside_a_model_and_is_not_its_own_may_be_large(copied: Path) -> None:
    for name in ("trainer_state.json", "questions.jsonl", "notes.txt"):
        (copied / name).touch()
        os.truncate(copied / name, folder.MAX_TEXT_BYTES + 1)
    load_tokenizer(copied)
    load_causal_lm(copied, torch.float32)


def test_an_adapter_is_no_model(copied: Path) -> None:
    edit(copied / "adapter_config.json", base_model_name_or_path="somebody/else", peft_type="LORA")
    with pytest.raises(UserError, match=r"adapter_config\.json: this folder holds an adapter, not a model"):
        load_causal_lm(copied, torch.float32)
