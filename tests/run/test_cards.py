"""What each GPU of a run with `[scale]` holds, worked by hand; shipped settings fit, and what cannot is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.models.pretrained import shape_of_causal_lm
from treegrpo_cli.run import memory, remedies
from treegrpo_cli.run.cards import cards
from treegrpo_cli.run.memory import NOT_HERE, described, memory_lines, problems
from treegrpo_cli.run.traffic import told

from tests.run.test_memory import CUDA, GIB, card, model_of
from tests.run.test_traffic import HIDDEN, LAYER, LAYERS, REST, VOCABULARY, qwen_7b

FOLDER = Path(__file__).parents[2] / "examples" / "scale"
WEIGHTS = LAYERS * LAYER + REST
SEVEN = FOLDER / "7b-8x80gb.toml"


@pytest.fixture(autouse=True)
def no_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def scaled(path: Path, **scale: Any) -> Config:
    """Settings of a file with another `[scale]`."""
    config = load_config(path)
    return config.model_copy(update={"scale": type(config.scale)(**scale)})


def test_a_rank_of_four_keeps_a_quarter_and_gathers_two_layers_and_the_rest() -> None:
    rank, _ = cards(load_config(SEVEN), qwen_7b(), CUDA, "vllm")
    assert (rank.whose, rank.number, rank.is_drivers) == ("a rank", 4, False)
    held = rank.count.trainer
    assert (held.weights, held.gradients, held.moments) == (WEIGHTS, WEIGHTS, 2 * WEIGHTS)  # 4 bytes / 4 ranks
    assert held.reference == 0
    assert held.exchanged == 2 * 4 * (REST + 2 * LAYER)  # weights and gradients, in float32
    assert held.activations == 16_384 * LAYERS * 4 * HIDDEN
    whole = cards(scaled(SEVEN), qwen_7b(), CUDA, "vllm")[0].count.trainer
    assert (whole.copies, whole.activations, whole.head) == (held.copies, held.activations, held.head)
    assert (whole.weights, whole.exchanged) == (4 * WEIGHTS, 0)
    phases = rank.count.phases(0)
    assert list(phases) == ["the update", "new weights"]
    # CUDA and NCCL; two buffers of vLLM's transfer, and the largest weight gathered and rounded
    assert phases["new weights"] == GIB * 3 // 2 + 3 * WEIGHTS + GIB // 2 + 2 * 4 * VOCABULARY * HIDDEN


def test_an_engine_of_two_gpus_has_half_on_each_and_stays_awake() -> None:
    config = scaled(SEVEN, engines=2, tensor_parallel=2, trainer_ranks=4)
    _, engine = cards(config, qwen_7b(), CUDA, "vllm")
    assert (engine.whose, engine.number) == ("an engine", 4)
    held = engine.count.engine
    sequence = 8192 * 2 * LAYERS * 512 * 2  # keys and values of four heads, in bfloat16
    assert (held.weights, held.cache, held.sleeps) == (WEIGHTS, 3 * GIB // 2 + sequence // 2, False)
    total = 80 * GIB
    share = int(0.8 * total)
    handed = GIB // 2 + 4 * VOCABULARY * HIDDEN
    assert engine.count.phases(total) == {
        "rollouts": GIB * 3 // 2 + share,
        "new weights": GIB * 3 // 2 + share + handed,
    }


def test_gpus_beyond_the_heads_of_keys_hold_copies_of_them() -> None:
    config = scaled(SEVEN, engines=1, tensor_parallel=7)
    *_, engine = cards(config, qwen_7b(), CUDA, "vllm")
    assert engine.count.engine.cache == 3 * GIB // 2 + 8192 * 2 * LAYERS * 128 * 2


def test_a_rank_and_its_engine_share_a_gpu_and_the_engine_sleeps() -> None:
    path = FOLDER / "paper-3b-8x80gb.toml"
    [both] = cards(load_config(path), model_of("3B"), CUDA, "vllm")
    assert (both.whose, both.number) == ("a rank and its engine", 8)
    weights, total = 3_085_938_688, int(79.1 * GIB)
    held = both.count
    assert (held.trainer.weights, held.trainer.moments) == (weights // 2, weights)
    assert held.overhead == 2 * GIB + GIB // 2  # two processes, and NCCL
    phases = held.phases(total)
    kept = held.overhead + held.trainer.kept
    assert phases["rollouts"] == kept + int(0.6 * total)
    assert phases["the update"] == kept + held.trainer.gradients + held.trainer.micro_batch + GIB
    assert phases["new weights"] == kept + 2 * weights + GIB // 2 + 3 * 4 * 151_936 * 2048


def test_a_path_that_holds_all_weights_is_counted_with_them() -> None:
    config = load_config(SEVEN, ["train.attention_path=depth-first"])
    assert cards(config, qwen_7b(), CUDA, "vllm")[0].count.trainer.exchanged == 2 * 4 * WEIGHTS


def test_a_trainer_in_the_driver_is_whole_and_alone_on_its_gpu() -> None:
    trainer, engine = cards(scaled(SEVEN, engines=7), qwen_7b(), CUDA, "vllm")
    assert (trainer.whose, trainer.number, trainer.is_drivers) == ("the trainer in this process", 1, True)
    assert (engine.whose, engine.number, engine.is_drivers) == ("an engine", 7, False)
    assert trainer.count.trainer.weights == 4 * WEIGHTS
    assert trainer.count.engine.least == 0
    assert trainer.count.engine.handed == 2 * 4 * VOCABULARY * HIDDEN  # by the object store: no buffers
    assert (trainer.count.overhead, engine.count.overhead) == (GIB, GIB)


def test_ranks_beside_an_engine_in_the_driver_or_servers() -> None:
    ranks, engine = cards(scaled(SEVEN, trainer_ranks=4), qwen_7b(), CUDA, "vllm")
    assert (ranks.is_drivers, engine.is_drivers, engine.number) == (False, True, 1)
    assert engine.whose == "the engine in this process"
    [only] = cards(scaled(SEVEN, trainer_ranks=4), qwen_7b(), CUDA, "server")
    assert only == ranks


@pytest.mark.parametrize("name", ["7b-8x80gb", "paper-3b-8x80gb"])
def test_the_settings_for_eight_gpus_fit_them_with_a_tenth_to_spare(name: str) -> None:
    config, model = load_config(FOLDER / f"{name}.toml"), qwen_7b() if name.startswith("7b") else model_of("3B")
    assert problems(config, model, CUDA, "vllm", card(79.1)) == []
    total = card(79.1).total
    assert max(one.count.peak(total) for one in cards(config, model, CUDA, "vllm")) < 0.9 * total


def test_seven_billion_weights_are_refused_on_one_gpu_and_not_on_eight() -> None:
    one = scaled(SEVEN)
    [line] = problems(one, qwen_7b(), CUDA, "vllm", card(79.1))
    assert line.startswith("memory: the update needs ")
    assert "; set model.lora_rank = 16" in line
    assert problems(load_config(SEVEN), qwen_7b(), CUDA, "vllm", card(79.1)) == []


def test_what_does_not_fit_names_the_gpu_and_what_would() -> None:
    config = scaled(SEVEN, engines=4, trainer_ranks=2)
    [line] = problems(config, qwen_7b(), CUDA, "vllm", card(79.1))
    assert line.startswith("memory: the update needs 82.8 GiB on the GPU of a rank, and cuda:0 has 79.1; set ")
    mended = remedies.changed(config, [("train.microbatch_tokens", 8192)])
    assert "train.microbatch_tokens = 8192" in line
    assert problems(mended, qwen_7b(), CUDA, "vllm", card(79.1)) == []
    [line] = problems(config, qwen_7b(), CUDA, "vllm", card(20))[-1:]
    assert line.endswith("take a smaller model or a larger device, or more scale.trainer_ranks")


def test_a_share_that_cannot_hold_an_engines_part_is_named() -> None:
    config = remedies.changed(load_config(SEVEN), [("sampler.gpu_memory_utilization", 0.1)])
    [line] = problems(config, qwen_7b(), CUDA, "vllm", card(79.1))
    assert line.startswith("sampler.gpu_memory_utilization: the engine needs 16.1 GiB")


def test_a_gpu_of_another_machine_is_not_held_to_that_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    here = scaled(SEVEN, engines=2, trainer_ranks=1)
    joined = scaled(SEVEN, engines=2, trainer_ranks=1, address="10.0.0.7:6379")
    assert problems(here, qwen_7b(), CUDA, "vllm", card(79.1)) != []
    assert problems(joined, qwen_7b(), CUDA, "vllm", card(79.1)) == []
    in_driver = scaled(SEVEN, engines=2, address="10.0.0.7:6379")
    [line] = problems(in_driver, qwen_7b(), CUDA, "vllm", card(79.1))
    assert "on the GPU of the trainer in this process" in line
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert problems(here, qwen_7b(), CUDA, "vllm", card(79.1)) == []
    assert problems(here, qwen_7b(), CUDA, "vllm", NOT_HERE) == []


def test_processes_on_cpus_are_told_and_never_refused(tiny_model_dir: Path) -> None:
    config = Config.model_validate(
        {"model": {"path": str(tiny_model_dir), "device": "cpu"}, "scale": {"engines": 2, "trainer_ranks": 2}}
    )
    model, cpu = shape_of_causal_lm(tiny_model_dir), torch.device("cpu")
    assert problems(config, model, cpu, "transformers", card(1e-6)) == []
    counted = cards(config, model, cpu, "transformers")
    assert [one.count.overhead for one in counted] == [0, 0]
    assert memory.bytes_of_run(config) >= sum(one.number * one.count.certain.peak(0) for one in counted)


def test_the_need_is_told_for_each_kind_of_gpu(tiny_model_dir: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    sections = {"model": {"path": str(tiny_model_dir)}, "scale": {"engines": 2, "trainer_ranks": 4}}
    lines = memory_lines(Config.model_validate(sections))
    assert [line.partition(":")[0] for line in lines] == [
        "memory of a rank (4 of them) in GiB",
        "at once",
        "memory of an engine (2 of them) in GiB",
        "at once",
        "weights to engines",
        "between ranks",
    ]
    assert lines[1].endswith("; no such GPU is here")
    assert lines[3].endswith("; no such GPU is here, and the engine takes 0.45 of its own")


def test_weights_on_their_way_are_told_by_the_step() -> None:
    to_engines, between = told(load_config(SEVEN), qwen_7b(), CUDA, "vllm")
    assert to_engines == "weights to engines: 56.7 GiB a step, 14.2 GiB to each of 4 GPUs"
    assert f"{8 * WEIGHTS / GIB:.1f}" == "56.7"
    assert between.startswith(
        f"between ranks: each receives {3 * (2 * LAYERS * LAYER + REST) / GIB:.1f} GiB of weights"
    )
    assert f" and {3 * WEIGHTS / GIB:.1f} GiB of gradients" in between
    adapters = Config.model_validate({"model": {"lora_rank": 16}, "scale": {"engines": 2}})
    [line] = told(adapters, model_of("0.5B"), CUDA, "vllm")
    assert "MiB a step" in line


def test_a_card_is_told_with_whose_it_is() -> None:
    [both] = cards(load_config(FOLDER / "paper-3b-8x80gb.toml"), model_of("3B"), CUDA, "vllm")
    first, second = described(both, card(79.1))
    assert first.startswith("memory of a rank and its engine (8 of them) in GiB: weights 1.4, gradients 1.4, ")
    assert ", of other ranks at a time 3.5, " in first
    assert second.endswith("; cuda:0 has 79.1 GiB")


@pytest.mark.parametrize("name", ["7b-8x80gb", "paper-3b-8x80gb"])
def test_the_memory_on_the_page_is_what_is_counted(name: str) -> None:
    config, model = load_config(FOLDER / f"{name}.toml"), qwen_7b() if name.startswith("7b") else model_of("3B")
    page = (FOLDER.parents[1] / "docs" / "how-to" / "scale.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith(f"| [{name}]")]
    peaks = [(one.whose, one.count.peak(card(79.1).total) / GIB) for one in cards(config, model, CUDA, "vllm")]
    assert row.strip("| ").partition(" | ")[2] == ", ".join(f"{whose} {peak:.1f}" for whose, peak in peaks)
