"""Families that once trained otherwise than their rows alone: on trees, on chains, or refused in one line."""

from typing import Any

import pytest

from tests.survey.compare import TREE_PATHS, Finding, survey
from tests.survey.configs import HEAD_SIZE, MIXED, ORIGINAL, WINDOW, tiny_config

EXACT = 3e-5
"""Of gradients in float32, where a window, a position or a route that is wrong gives 0.01 or more."""

NO_MASK = "its {} layers do not read a mask, so siblings would see each other"
MIXED_WINDOW = {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": list(MIXED)}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 4.4, 4.8, 5.2],
    "short_mscale": 1.0,
    "long_mscale": 1.2,
}
LONG_PHI3 = {
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {name: value for name, value in LONGROPE.items() if "mscale" not in name},
}
assert len(LONGROPE["short_factor"]) == HEAD_SIZE // 2

TREES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2_moe, whose mask alone knows the window": ("qwen2_moe", MIXED_WINDOW),
    "phimoe, whose mask alone knows the window": ("phimoe", {"sliding_window": WINDOW}),
    "phimoe, whose routers compute otherwise in training": ("phimoe", {}),
    "phimoe with longrope": ("phimoe", {"rope_parameters": LONGROPE}),
    "phi3 with longrope": ("phi3", LONG_PHI3),
    "gemma4_text, whose layers differ in shape": ("gemma4_text", {}),
    "llama with dynamic positions": ("llama", {"rope_parameters": DYNAMIC}),
}

CHOICE = "its attention chooses keys, and breaks ties by their place in the row"

CHAINS: dict[str, tuple[str, dict[str, Any], str]] = {
    "doge, whose padded rows choose other keys": ("doge", {}, CHOICE),
    "deepseek_v32, whose padded rows choose other keys": ("deepseek_v32", {"tie_word_embeddings": True}, CHOICE),
    "mamba": ("mamba", {}, NO_MASK.format("linear_attention")),
    "mamba2": ("mamba2", {}, NO_MASK.format("linear_attention")),
    "falcon_mamba": ("falcon_mamba", {}, NO_MASK.format("linear_attention")),
    "rwkv": ("rwkv", {}, "its layers carry a state from token to token, so siblings would see each other"),
    "xlstm": ("xlstm", {}, "its layers carry a state from token to token, so siblings would see each other"),
    "llama4_text": (
        "llama4_text",
        {},
        "its chunked_attention layers go by places in a row, not by positions",
    ),
    "bloom": ("bloom", {}, "its attention cannot be replaced"),
    "gemma2": ("gemma2", {}, "Gemma2Attention attends with softcap"),
}

NO_HEAD = "{} cannot be trained: its logits are not those of its LM head on the last hidden states"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("bert", {"is_decoder": True}, NO_HEAD.format("BertLMHeadModel")),
    "modernbert-decoder": ("modernbert-decoder", {}, NO_HEAD.format("ModernBertDecoderForCausalLM")),
    "bert that reads ahead": (
        "bert-generation",
        {},
        "BertGenerationDecoder cannot be trained: its tokens see later ones",
    ),
}


def found(family: str, changes: dict[str, Any]) -> Finding:
    finding = survey(tiny_config(family, changes))
    assert finding.not_built is None
    assert finding.crashed is None
    return finding


@pytest.mark.parametrize("case", TREES)
def test_trees_and_chains_train_as_each_row_does_alone(case: str) -> None:
    finding = found(*TREES[case])
    assert finding.differences.keys() == {"chains", *TREE_PATHS}, finding
    assert max(finding.differences.values()) < EXACT, finding


@pytest.mark.parametrize("case", CHAINS)
def test_chains_train_as_each_row_does_alone_where_trees_are_refused(case: str) -> None:
    family, changes, reason = CHAINS[case]
    finding = found(family, changes)
    assert finding.refusals == dict.fromkeys(TREE_PATHS, reason)
    assert finding.differences.keys() == {"chains"}
    assert finding.differences["chains"] < EXACT


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(case: str) -> None:
    family, changes, reason = REFUSED[case]
    assert found(family, changes).refused == f"model.path: {reason}"
