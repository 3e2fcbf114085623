"""The bytes that a step moves, worked by hand for Qwen2.5-7B on four engines and eight ranks."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from treegrpo_cli._core import Forest
from treegrpo_cli.config import Config
from treegrpo_cli.run.traffic import TOKEN_BYTES, Spread, bytes_sent, gathered_a_round, received, step_traffic
from treegrpo_cli.train.footprint import exchanged_parts

CUDA = torch.device("cuda")
HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 3584, 18_944, 28, 152_064
LAYER = 2 * HIDDEN**2 + HIDDEN + 2 * (HIDDEN + 1) * 512 + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN
"""Queries and what attention gives; keys and values of four heads; the MLP; two norms."""
REST = 2 * VOCABULARY * HIDDEN + HIDDEN


@lru_cache(maxsize=1)
def qwen_7b() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            Qwen2Config(
                vocab_size=VOCABULARY,
                hidden_size=HIDDEN,
                intermediate_size=INTERMEDIATE,
                num_hidden_layers=LAYERS,
                num_attention_heads=28,
                num_key_value_heads=4,
                max_position_embeddings=32_768,
                tie_word_embeddings=False,
            )
        )


def test_a_step_of_seven_billion_weights_is_the_one_worked_by_hand() -> None:
    assert LAYERS * LAYER + REST == 7_615_616_512
    model = qwen_7b()
    sent, (weights, gradients) = bytes_sent(model, torch.bfloat16), exchanged_parts(Config(), model, CUDA)
    assert sent == 2 * 7_615_616_512
    assert (weights.layers, weights.layer, weights.rest) == (4 * LAYERS * LAYER, 4 * LAYER, 4 * REST)
    assert gradients == weights  # all of it is trained, in float32
    spread = Spread(ranks=8, engines=4, tensor_parallel=2, machines=2)
    step = step_traffic(sent, weights, gradients, spread, tokens=1_000_000, microbatch_tokens=16_384, forwards=1)
    assert step.to_engines == 8 * 2 * 7_615_616_512
    rounds = 8  # 1,000,000 / (8 x 16,384) = 7.6
    assert step.gathered == rounds * (7 * 4 * (3 * LAYERS * LAYER + 2 * REST) // 8)
    assert step.summed == rounds * (7 * 4 * 7_615_616_512 // 8)
    assert step.trees == 2 * 14_000_000


def test_one_rank_receives_nothing() -> None:
    weights, _ = exchanged_parts(Config(), qwen_7b(), CUDA)
    assert gathered_a_round(weights, 1) == received(weights.whole, 1) == 0


def test_under_adapters_frozen_weights_travel_in_bfloat16_and_adapters_alone_are_summed() -> None:
    config = Config.model_validate({"model": {"lora_rank": 16, "lora_target_modules": ["q_proj"]}})
    weights, gradients = exchanged_parts(config, qwen_7b(), CUDA)
    adapters = LAYERS * 16 * (HIDDEN + HIDDEN)
    assert (gradients.layers, gradients.rest) == (4 * adapters, 0)
    norms, embeddings = LAYERS * 2 * HIDDEN, VOCABULARY * HIDDEN  # in float32 as they are
    assert weights.layers == 2 * (LAYERS * LAYER - norms) + 4 * norms + 4 * adapters
    assert weights.rest == 2 * embeddings + 4 * embeddings + 4 * HIDDEN


def test_a_forests_token_has_the_bytes_that_are_counted() -> None:
    forest = Forest()
    forest.add_tree(0, np.ones(1000, dtype=np.uint32))
    of_tokens = [column for column in forest.columns().values() if len(column) == 1000]
    assert len(of_tokens) == 5
    assert sum(column.itemsize for column in of_tokens) == TOKEN_BYTES
