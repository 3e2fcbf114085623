"""What training is counted to take is what it takes: measured by torch's allocations on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen3Config
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.models.pretrained import shape_of_causal_lm
from treegrpo_cli.models.sizes import ModelSizes, UncountableError
from treegrpo_cli.train.batch import layouts, to_batch
from treegrpo_cli.train.footprint import most_leaves, trainer_bytes
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.schedule import make_optimizer
from treegrpo_cli.types import TrainBatch

from tests.allocations import peak_bytes
from tests.forests import forest_of, make_node

TOKENS, PROMPT_TOKENS = 512, 8
WITHIN = 7 / 6
"""How far a count may be from what is allocated, either way."""

SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models large enough for their layers to outweigh all else."""
    from transformers import AutoModelForCausalLM

    folders = {}
    for name, config in {"qwen2": Qwen2Config(**SIZES), "qwen3": Qwen3Config(**SIZES)}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


def settings(model: Path, **changes: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(model), "device": "cpu", **changes},
            "train": {"microbatch_tokens": TOKENS},
            "rollout": {"max_context_tokens": TOKENS},
        }
    )


def two_leaves(path: str) -> TrainBatch:
    """One tree of about `TOKENS`: a prompt and two turns of equal length."""
    draw = np.random.default_rng(0)

    def tokens(number: int, sampled: bool) -> list[tuple[int, bool, float]]:
        ids = draw.integers(0, SIZES["vocab_size"], number)
        return [(int(token), sampled, -1.0 if sampled else 0.0) for token in ids]

    root = make_node() | {"tokens": tokens(PROMPT_TOKENS, False)}
    for reward in (0.0, 1.0):
        turn = make_node() | {"tokens": tokens((TOKENS - PROMPT_TOKENS) // 2, True), "reward": reward}
        root["children"].append(turn)
    forest, _ = forest_of([{"prompt": 0, "root": root}])
    [layout] = layouts(forest, forest.score("tree-grpo", {}), 1.0, 1, shared=path != "chains")
    [micro] = layout.micro_batches(1 << 40)
    return to_batch(micro)


@pytest.mark.parametrize(
    ("family", "path", "dtype", "checkpointed", "lora_rank"),
    [
        ("qwen2", "runs", "float32", False, 0),
        ("qwen2", "runs", "bfloat16", False, 0),
        ("qwen2", "runs", "bfloat16", True, 0),
        ("qwen2", "runs", "float32", True, 8),
        ("qwen3", "chains", "bfloat16", True, 8),
        ("qwen3", "chains", "float32", False, 0),
        ("qwen3", "chains", "bfloat16", False, 8),
    ],
)
def test_a_micro_batch_takes_what_is_counted(
    models: dict[str, Path], family: str, path: str, dtype: str, checkpointed: bool, lora_rank: int
) -> None:
    config = settings(models[family], dtype=dtype, gradient_checkpointing=checkpointed, lora_rank=lora_rank)
    policy, batch = Policy(config), two_leaves(path)
    for weight in policy.trained_parameters().values():
        weight.grad = torch.zeros_like(weight)

    def objective(logprobs: torch.Tensor, entropy: torch.Tensor, which: slice) -> torch.Tensor:
        return -(logprobs * batch.gain[which]).sum()

    measured = peak_bytes(lambda: policy.backward(batch, named(path), objective, is_local=True))
    counted = trainer_bytes(config, shape_of_causal_lm(models[family]), torch.device("cpu"))
    assert 1 / WITHIN < counted.micro_batch / measured < WITHIN


@pytest.mark.parametrize(
    ("model", "kl_coef"), [({}, 0.1), ({"dtype": "bfloat16"}, 0.1), ({"dtype": "bfloat16", "lora_rank": 8}, 0.1)]
)
def test_what_stays_is_counted_to_the_byte(models: dict[str, Path], model: dict[str, Any], kl_coef: float) -> None:
    config = settings(models["qwen2"], **model)
    config = config.model_copy(update={"loss": config.loss.model_copy(update={"kl_coef": kl_coef})})
    policy = Policy(config)
    optimizer = make_optimizer(policy, config)
    for weight in policy.trained_parameters().values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = [moment for state in optimizer.state.values() for name, moment in state.items() if name != "step"]
    counted = trainer_bytes(config, shape_of_causal_lm(models["qwen2"]), torch.device("cpu"))
    assert counted.weights == num_bytes(policy.network.parameters())
    assert counted.gradients == num_bytes(w.grad for w in policy.trained_parameters().values())
    assert counted.moments == num_bytes(kept)
    assert counted.reference == (num_bytes(policy.reference.parameters()) if policy.reference else 0)
    assert bool(counted.reference) == (not config.model.lora_rank)


def num_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_model_that_does_not_name_its_sizes_is_not_counted(models: dict[str, Path]) -> None:
    model = shape_of_causal_lm(models["qwen2"])
    model.config.num_attention_heads = 0
    with pytest.raises(UncountableError, match="no num_attention_heads"):
        ModelSizes.of(model)


def test_experts_count_as_many_as_a_token_goes_through(models: dict[str, Path]) -> None:
    model = shape_of_causal_lm(models["qwen2"])
    model.config.num_experts_per_tok, model.config.moe_intermediate_size = 4, 96
    assert ModelSizes.of(model).intermediate == 4 * 96


@pytest.mark.parametrize(
    ("sections", "of_tree", "of_all"),
    [
        ({}, 5, 4 * 2 * 5),
        ({"rollout": {"num_kept_leaves": 2}}, 2, 4 * 2 * 2),
        ({"rollout": {"allocation": "uncertain"}}, 1 + 8 * 2 * 4, 4 * 2 + 8 * 2 * 4),
        ({"rollout": {"rescue": "dead", "max_rescues": 3}}, 8, 4 * (2 * 5 + 3)),
        ({"budget": {"prompt_leaves": 4}}, 3, 4 * 4),
        ({"budget": {"prompt_leaves": 1}}, 1, 4 * 2),
        ({"budget": {"step_leaves": 20}}, 5, 4 * 2 + 4),
        ({"rollout": {"allocation": "uncertain"}, "budget": {"step_leaves": 20}}, 5, 4 * 2 + 4),
    ],
    ids=str,
)
def test_the_most_leaves_are_those_that_rounds_allocation_rescues_and_budgets_allow(
    sections: dict[str, Any], of_tree: int, of_all: int
) -> None:
    rollout = {"num_trees": 2, "num_expansions": 2, "num_rounds": 2} | sections.get("rollout", {})
    train = {"prompts_per_step": 8, "prompts_per_minibatch": 4}
    assert most_leaves(make_config({**sections, "rollout": rollout, "train": train})) == (of_tree, of_all)
