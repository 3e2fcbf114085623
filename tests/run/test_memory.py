"""The memory of whole runs, worked by hand; what cannot fit is refused with the settings that would."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.models.memory import DeviceMemory
from treegrpo_cli.models.pretrained import shape_of_causal_lm
from treegrpo_cli.run import memory, remedies
from treegrpo_cli.run.cards import Card
from treegrpo_cli.run.memory import described, problems
from treegrpo_cli.run.memory_count import MemoryCount, count

from tests.command_line import refused, run
from tests.runs import small_run

CUDA = torch.device("cuda:0")
VOCABULARY = 151_936
GIB = 2**30
QWEN = {
    "0.5B": {"hidden": 896, "intermediate": 4864, "layers": 24, "heads": 14},
    "1.5B": {"hidden": 1536, "intermediate": 8960, "layers": 28, "heads": 12},
    "3B": {"hidden": 2048, "intermediate": 11008, "layers": 36, "heads": 16},
}
"""Qwen2.5: all tied, two heads of keys."""

SHIPPED = Path(__file__).parents[2] / "examples" / "gpu" / "multi-hop-3b-80gb.toml"


def model_of(size: str) -> Any:
    """The model on the meta device, from its configuration alone."""
    shape = QWEN[size]
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def card(gib: float) -> DeviceMemory:
    return DeviceMemory("cuda:0", int(gib * GIB), int(gib * GIB))


def alone(counted: MemoryCount) -> Card:
    """The device of a run of one process."""
    return Card("", 1, counted)


def settings(**sections: dict[str, Any]) -> Config:
    return Config.model_validate(sections)


def test_the_shipped_settings_of_three_billion_weights_are_those_worked_by_hand() -> None:
    embeddings, hidden, layers = VOCABULARY * 2048, 2048, 36
    matrices = 2 * hidden * hidden + 2 * hidden * 256 + 3 * hidden * 11_008  # q, o; k, v; gate, up, down
    biases, norms = 2048 + 2 * 256, 2 * hidden
    weights = layers * (matrices + biases + norms) + hidden + embeddings
    assert weights == 3_085_938_688
    counted = count(load_config(SHIPPED), model_of("3B"), CUDA, "vllm")
    trainer = counted.trainer
    assert (trainer.weights, trainer.gradients, trainer.moments) == (4 * weights, 4 * weights, 8 * weights)
    linear = layers * (matrices + biases)
    assert trainer.reference == 2 * linear + 4 * (weights - linear)
    assert trainer.copies == 2 * matrices  # a checkpointed layer at a time
    tokens = 16_384
    assert trainer.activations == tokens * layers * 4 * hidden  # checkpointed: each layer's input
    assert counted.engine.weights == 2 * weights
    # the update, beside an engine that sleeps
    assert 66e9 < counted.phases(card(79.1).total)["the update"] < 70e9


def test_three_billion_weights_fit_a_card_of_80_where_the_engine_sleeps() -> None:
    config = load_config(SHIPPED)
    assert problems(config, model_of("3B"), CUDA, "vllm", card(79.1)) == []
    awake = remedies.changed(config, [("sampler.sleep", False)])
    [line] = problems(awake, model_of("3B"), CUDA, "vllm", card(79.1))
    assert '; set sampler.sleep = "auto", or sampler.gpu_memory_utilization = ' in line


@pytest.mark.parametrize(("size", "lora_rank", "share"), [("0.5B", 0, 0.3), ("1.5B", 16, 0.4)])
def test_small_models_fit_a_card_of_24(size: str, lora_rank: int, share: float) -> None:
    config = settings(
        model={"gradient_checkpointing": True, "lora_rank": lora_rank}, sampler={"gpu_memory_utilization": share}
    )
    assert problems(config, model_of(size), CUDA, "vllm", card(23.6)) == []


def test_what_leaves_the_result_as_it_is_comes_first() -> None:
    config = settings(model={"lora_rank": 16})
    [line] = problems(config, model_of("1.5B"), CUDA, "vllm", card(23.6))
    assert line.startswith("memory: the update needs ")
    assert line.endswith(" GiB, and cuda:0 has 23.6; set model.gradient_checkpointing = true")


def test_several_changes_are_named_where_one_is_not_enough() -> None:
    config = settings(loss={"kl_coef": 0.1}, sampler={"gpu_memory_utilization": 0.4})
    [line] = problems(config, model_of("1.5B"), CUDA, "vllm", card(32))
    named = line.partition("; set ")[2].split(" and ")
    assert len(named) > 1
    changes = [(key, json.loads(value)) for key, _, value in (change.partition(" = ") for change in named)]
    assert problems(remedies.changed(config, changes), model_of("1.5B"), CUDA, "vllm", card(32)) == []
    assert problems(remedies.changed(config, changes[:-1]), model_of("1.5B"), CUDA, "vllm", card(32)) != []


def test_adapters_are_named_where_all_weights_cannot_fit() -> None:
    [line] = problems(settings(), model_of("3B"), CUDA, "vllm", card(23.6))
    assert "; set model.lora_rank = 16 and model.gradient_checkpointing = true" in line


def test_a_card_that_is_too_small_for_all_is_said_to_be() -> None:
    lines = problems(settings(), model_of("3B"), CUDA, "vllm", card(4))
    assert lines[0].startswith("sampler.gpu_memory_utilization: the engine needs ")
    assert lines[-1].endswith("no setting makes it fit: take a smaller model or a larger device")


def test_a_share_that_cannot_hold_the_engine_is_named_with_one_that_can() -> None:
    config = settings(model={"lora_rank": 16, "gradient_checkpointing": True}, sampler={"gpu_memory_utilization": 0.1})
    [line] = problems(config, model_of("1.5B"), CUDA, "vllm", card(23.6))
    share = float(line.rpartition("set it to ")[2].removesuffix(" or more"))
    mended = remedies.changed(config, [("sampler.gpu_memory_utilization", share)])
    assert problems(mended, model_of("1.5B"), CUDA, "vllm", card(23.6)) == []


def test_what_others_take_of_a_card_is_not_free() -> None:
    config = settings(model={"gradient_checkpointing": True}, sampler={"gpu_memory_utilization": 0.3})
    memory = replace(card(23.6), free=12 * GIB)
    assert problems(config, model_of("0.5B"), CUDA, "vllm", card(23.6)) == []
    [line] = problems(config, model_of("0.5B"), CUDA, "vllm", memory)
    assert "cuda:0 has 12.0" in line


def test_on_a_cpu_only_what_is_certain_is_refused() -> None:
    config, model, cpu = settings(loss={"kl_coef": 0.1}), model_of("0.5B"), torch.device("cpu")
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    certain = 6 * weights  # the policy, its gradient, two moments, the reference, and the engine
    assert problems(config, model, cpu, "transformers", DeviceMemory("this machine", certain, certain)) == []
    [line] = problems(config, model, cpu, "transformers", DeviceMemory("this machine", certain - 1, certain - 1))
    assert line.endswith("; set loss.kl_coef = 0")


def test_a_count_is_told_in_two_lines() -> None:
    config = load_config(SHIPPED)
    first, second = described(alone(count(config, model_of("3B"), CUDA, "vllm")), card(79.1))
    assert first.startswith("memory in GiB: weights 11.5, gradients 11.5, AdamW's moments 23.0, reference 6.3, ")
    assert second.endswith("; cuda:0 has 79.1 GiB")


def test_a_count_of_little_is_told_in_smaller_units(tiny_model_dir: Path) -> None:
    model = shape_of_causal_lm(tiny_model_dir)
    config = settings(model={"path": str(tiny_model_dir)})
    counted = count(config, model, torch.device("cpu"), "transformers")
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    first, _ = described(alone(counted), card(79.1))
    assert first.startswith(f"memory in MiB: weights {weights / 2**20:.1f}, ")


def test_a_dry_run_prints_the_count_behind_the_settings(tmp_path: Path, tiny_model_dir: Path) -> None:
    done = run("train", *as_arguments(small_run(tmp_path, tiny_model_dir)), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert [line.split(" ")[:2] for line in done.stdout.splitlines()[-2:]] == [["#", "memory"], ["#", "at"]]


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: DeviceMemory("this machine", 1000, 1000))
    line = refused(run("train", *as_arguments(small_run(tmp_path, tiny_model_dir))))
    assert line.startswith("treegrpo: memory: ")
    assert "this machine has 0.0; no setting makes it fit" in line


def as_arguments(tables: dict[str, Any]) -> list[str]:
    """Settings as `section.key=value`."""
    flat = [(section, table) for section, table in tables.items() if not isinstance(table, dict)]
    flat += [
        (f"{section}.{key}", v)
        for section, table in tables.items()
        if isinstance(table, dict)
        for key, v in table.items()
    ]
    return [f"{key}={toml(value)}" for key, value in flat]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)
