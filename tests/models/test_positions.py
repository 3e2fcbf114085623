"""Rotary positions stay where the run's longest context puts them, whatever else is in a batch."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedConfig
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.models.positions import fix_positions, moving_positions
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.types import SamplingParams

from tests.survey.compare import save_random_model
from tests.tiny import make_tiny_tokenizer

ORIGINAL, LONGEST = 16, 64
SHORT = [1.0, 1.5, 2.0, 2.5]
LONG = [4.0, 8.0, 12.0, 16.0]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": SHORT,
    "long_factor": LONG,
}


def longrope(vocab_size: int = 48) -> PreTrainedConfig:
    return Phi3Config(
        **SIZES, vocab_size=vocab_size, original_max_position_embeddings=ORIGINAL, rope_parameters=LONGROPE
    )


def make_model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def rotations(model: Any, length: int) -> Tensor:
    """The cosines of the first ten places in a row of this length."""
    cosines: Tensor = model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])[0]
    return cosines[0, :10]


def expected(factors: list[float], scale: float) -> Tensor:
    frequencies = [1 / (factor * 1e4 ** (place / 4)) for place, factor in enumerate(factors)]
    angles = torch.arange(10)[:, None] * torch.tensor(frequencies)
    return scale * torch.cat([angles, angles], dim=1).cos()


@pytest.mark.parametrize(("context", "factors"), [(ORIGINAL, SHORT), (ORIGINAL + 1, LONG)])
def test_longrope_takes_the_factors_of_the_longest_context_for_every_row(context: int, factors: list[float]) -> None:
    model = make_model(longrope())
    scale = (1 + torch.tensor(256 / ORIGINAL).log() / torch.tensor(float(ORIGINAL)).log()).sqrt().item()
    assert moving_positions(model) == ["longrope"]
    assert not torch.allclose(rotations(model, 10), rotations(model, LONGEST))
    fix_positions(model, context)
    assert moving_positions(model) == []
    for length in (10, LONGEST, 10):
        torch.testing.assert_close(rotations(model, length), expected(factors, scale))
    assert model.config.rope_parameters["short_factor"] == SHORT


def test_dynamic_positions_do_not_move_when_a_longer_row_has_passed() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = make_model(LlamaConfig(**SIZES, vocab_size=48, rope_parameters=rope))
    fix_positions(model, LONGEST)
    for length in (10, 300):
        torch.testing.assert_close(rotations(model, length), expected([1.0] * 4, 1.0))


def test_the_sampler_computes_with_the_positions_of_its_longest_context(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    save_random_model(longrope(len(tokenizer)), tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = {"dtype": "float32", "device": "cpu", "max_model_len": LONGEST, "seed": 0, "log_path": None}
    sampler = make_sampler(SamplerConfig(engine="transformers"), str(tmp_path), **settings)
    context = list(range(10, 15))
    turn = asyncio.run(sampler.sample(context, SamplingParams(max_tokens=4), 0))
    sampler.close()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    fix_positions(model, LONGEST)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([[*context, *turn.token_ids]])).logits[0], dim=-1)
    ours = [float(logprobs[len(context) - 1 + i, token]) for i, token in enumerate(turn.token_ids)]
    assert turn.logprobs == pytest.approx(ours, abs=1e-4)


def test_vllm_chooses_as_we_do() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    source = Path(found.origin).parent / "model_executor/layers/rotary_embedding/phi3_long_rope_scaled_rope.py"
    assert "self.use_long_rope = max_model_len > original_max_position_embeddings" in source.read_text()
