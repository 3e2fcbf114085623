"""What gives wrong logits and no error elsewhere: each is right here, or refused with its reason."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    GPT2Config,
    JambaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.positions import fix_positions
from treegrpo_cli.train import networks
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.forward import Decoder, tree_refusal
from treegrpo_cli.train.networks import load_model
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.paths.dense import DensePlan
from treegrpo_cli.train.paths.one_forward import OneForward
from treegrpo_cli.train.tree_attention import TreeUnsupportedError
from treegrpo_cli.types import TrainBatch

from tests.chainwise import Rows, random_trees
from tests.families import FAMILIES, SCALED_HEADS, SIZES, VOCABULARY, WINDOW, make_trainer, relative, save_model
from tests.updates import Case, actual_update, assert_equal, expected_update

WRONG = 0.05
"""Relative difference of hidden states from which they are no rounding of each other."""

HEAD_CASE = Case({"entropy_coef": 0.1}, "grpo", 0, temperature=0.7)


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    rows = Rows.of(random_trees(0, VOCABULARY, num_turns=12), "grpo")
    [whole] = rows.forest.pack(rows.scores).micro_batches(10_000)
    return to_batch(whole)


def make_model(config: PreTrainedConfig, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)


def predictor_states(model: Any, batch: TrainBatch, path: str) -> Tensor:
    taken = named(path)
    assert isinstance(taken, OneForward)
    return taken.predictor_states(Decoder(model), batch)


@torch.no_grad()
def chain_states(model: Any, batch: TrainBatch) -> Tensor:
    """The hidden state of each predictor: its path alone, through the library's model."""
    parents, states = batch.parent_token.tolist(), []
    for token in batch.predictors.tolist():
        path = [token]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        states.append(model.get_decoder()(batch.token_ids[path][None], use_cache=False).last_hidden_state[0, -1])
    return torch.stack(states)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@pytest.mark.parametrize("path", ["runs", "dense", "chains"])
@torch.no_grad()
def test_a_model_loaded_with_eager_attention_is_right_on_trees(family: str, path: str, batch: TrainBatch) -> None:
    """Eager attention adds its mask to the scores, and a boolean mask adds 1 where a token may be seen."""
    truth = chain_states(make_model(FAMILIES[family]), batch)
    eager = make_model(FAMILIES[family], "eager")
    assert relative(predictor_states(eager, batch, path), truth) < 1e-5


@torch.no_grad()
def test_positions_are_depths_and_count(batch: TrainBatch) -> None:
    """Those of the layout's order are other positions, as they would be if they were left out."""
    model = make_model(FAMILIES["llama"])
    truth, decoder = chain_states(model, batch), Decoder(model)
    whole = slice(0, len(batch.token_ids))
    own = decoder.planned_states(batch, whole, DensePlan(batch))[batch.predictors]
    left_out = decoder.module(batch.token_ids[None], tree_plan=DensePlan(batch), use_cache=False).last_hidden_state
    assert relative(own, truth) < 1e-5
    assert relative(left_out[0, batch.predictors], truth) > WRONG


@torch.no_grad()
def test_tree_positions_alone_are_no_mask(batch: TrainBatch) -> None:
    """The library takes them for texts packed side by side, each of which begins where positions do."""
    model = make_model(FAMILIES["llama"])
    packed = model.get_decoder()(batch.token_ids[None], position_ids=batch.positions[None], use_cache=False)
    assert relative(packed.last_hidden_state[0, batch.predictors], chain_states(model, batch)) > WRONG


@torch.no_grad()
def test_each_layer_has_its_own_window(batch: TrainBatch) -> None:
    windows = []

    class Spy(DensePlan):
        def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: Any, layer: int) -> Tensor:
            windows.append((layer, window))
            return super().attend(query, key, value, scale, window, layer)

    for family in ("qwen2-window", "gemma3", "mistral", "qwen2"):
        decoder = Decoder(make_model(FAMILIES[family]))
        decoder.planned_states(batch, slice(0, len(batch.token_ids)), Spy(batch))
    assert windows == [(0, WINDOW), (1, None)] * 2 + [(0, WINDOW), (1, WINDOW)] + [(0, None), (1, None)]


STATEFUL = {
    "linear attention": (
        Qwen3NextConfig(**SIZES, layer_types=["linear_attention", "full_attention"], num_experts=4),
        "its linear_attention layers do not read a mask",
    ),
    "a state space": (
        FalconMambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
        "its linear_attention layers do not read a mask",
    ),
    "both": (
        JambaConfig(**SIZES, attn_layer_period=2, attn_layer_offset=1, num_experts=2),
        "its linear_attention layers do not read a mask",
    ),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_layers_that_read_no_mask_are_refused(name: str) -> None:
    config, reason = STATEFUL[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert tree_refusal(model) == f"{reason}, so siblings would see each other"


def test_a_model_with_a_state_or_an_attention_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(FAMILIES["qwen3"])
    assert tree_refusal(model) is None
    monkeypatch.setattr(type(model), "_is_stateful", True)
    assert tree_refusal(model) == ("its layers carry a state from token to token, so siblings would see each other")
    monkeypatch.setattr(type(model), "_is_stateful", False)
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    assert tree_refusal(model) == "its attention cannot be replaced"


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}


@pytest.mark.parametrize(
    ("rope", "moving"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, ""),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, ""),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "dynamic"),
        (LONGROPE, "longrope"),
        (LONGROPE | {"long_factor": LONGROPE["short_factor"]}, ""),
    ],
)
def test_positions_that_depend_on_the_length_are_refused_until_they_are_fixed(
    rope: dict[str, Any], moving: str
) -> None:
    """A forest is as long as all its paths, and its longest path longer than most."""
    model = make_model(Qwen3Config(**SIZES, rope_parameters=rope))
    reason = f"its {moving} positions depend on the longest row of a batch" if moving else None
    assert tree_refusal(model) == reason
    fix_positions(model, 256)
    assert tree_refusal(model) is None
    assert model.config.rope_parameters == rope


def test_dropout_is_refused_and_a_loaded_policy_has_none(batch: TrainBatch, tmp_path: Path) -> None:
    reason = "with dropout, a shared token is drawn once, and chains draw anew in every row"
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4}
    assert tree_refusal(make_model(GPT2Config(**sizes, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.1))) == reason
    functional = make_model(Qwen2Config(**SIZES, attention_dropout=0.1)).train()
    with pytest.raises(TreeUnsupportedError, match="Qwen2Attention attends with dropout"):
        predictor_states(functional, batch, "runs")
    for number, config in enumerate((GPT2Config(**sizes), Qwen2Config(**SIZES, attention_dropout=0.1))):
        model = load_model(save_model(config, tmp_path / str(number))).train()
        assert tree_refusal(model) is None
        truth = chain_states(model, batch)
        assert relative(predictor_states(model, batch, "runs").detach(), truth) < 1e-5


def test_dropout_of_adapters_is_refused(tmp_path: Path) -> None:
    model_dir = save_model(FAMILIES["qwen3"], tmp_path)
    for dropout, refused in ((0.0, False), (0.1, True)):
        lora = {"lora_rank": 2, "lora_dropout": dropout}
        policy = make_trainer(model_dir, "chains", {}, model=lora).policy
        assert (tree_refusal(policy.network) is not None) == refused


@pytest.mark.parametrize("path", ["runs", "depth-first", "chains"])
def test_the_balance_loss_of_experts_is_no_part_of_the_loss(path: str, tmp_path: Path) -> None:
    """It counts tokens, and a forest has fewer of them than its chains: the objective is the policy's alone."""
    case, updates = Case({}, "grpo", 0), []
    for balanced in (False, True):
        config = Qwen3MoeConfig(**FAMILIES["qwen3-moe"].to_dict() | {"output_router_logits": balanced})
        model_dir = save_model(config, tmp_path / str(balanced))
        trainer = make_trainer(model_dir, path, case.loss)
        assert trainer.policy.model.config.output_router_logits == balanced
        updates.append(actual_update(trainer, case))
    assert updates[0].loss == updates[1].loss
    for name, grad in updates[0].grads.items():
        assert torch.equal(updates[1].grads[name], grad), name


class Attentionless(nn.Module):
    """Stands for an attention that never asks the library for its function."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None


def test_a_layer_that_does_not_attend_through_the_library_is_refused(batch: TrainBatch) -> None:
    model = make_model(FAMILIES["qwen3"])
    model.model.layers[1].self_attn = Attentionless()
    with pytest.raises(TreeUnsupportedError, match=r"^its 2 layers call the library's attention 1 times$"):
        predictor_states(model, batch, "runs")


def test_a_layer_that_drops_the_models_keywords_is_refused(batch: TrainBatch) -> None:
    model = make_model(FAMILIES["qwen3"])
    attend = model.model.layers[1].self_attn.forward

    def forgetful(hidden_states: Tensor, position_embeddings: Any, attention_mask: Any, **_kwargs: Any) -> Any:
        return attend(hidden_states, position_embeddings, attention_mask)

    model.model.layers[1].self_attn.forward = forgetful
    with pytest.raises(TreeUnsupportedError, match=r"^Qwen3Attention does not receive its model's keyword arguments$"):
        predictor_states(model, batch, "runs")


@pytest.mark.parametrize("family", SCALED_HEADS)
def test_heads_that_cap_or_scale_their_logits_are_trained_as_the_model_computes_them(
    family: str, tmp_path: Path
) -> None:
    model_dir = save_model(SCALED_HEADS[family], tmp_path)
    for path in ("chains", *(("runs", "depth-first") if family != "gemma2" else ())):
        trainer = make_trainer(model_dir, path, HEAD_CASE.loss, rollout={"temperature": HEAD_CASE.temperature})
        expected = expected_update(trainer, HEAD_CASE)
        assert_equal(actual_update(trainer, HEAD_CASE), expected, 1e-5, path)


def test_a_model_with_a_head_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = save_model(FAMILIES["llama"], tmp_path)
    forward = LlamaForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    with monkeypatch.context() as context:
        context.setattr(LlamaForCausalLM, "forward", scaled)
        with pytest.raises(
            UserError, match="LlamaForCausalLM cannot be trained: its logits are not those of its LM head"
        ):
            make_trainer(model_dir, "chains", {})
    model = networks.load_causal_lm(model_dir, torch.float32)
    model.set_output_embeddings(nn.Embedding(4, 4))
    monkeypatch.setattr(networks, "load_causal_lm", lambda *_: model)
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be trained: it has no linear LM head"):
        make_trainer(model_dir, "chains", {})


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_large_logits_that_bfloat16_rounds_are_nothing_against_a_model(lora_rank: int, tmp_path: Path) -> None:
    model_dir = save_model(FAMILIES["qwen2"], tmp_path)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    model.save_pretrained(model_dir)
    policy = make_trainer(model_dir, "chains", {}, model={"dtype": "bfloat16", "lora_rank": lora_rank}).policy
    token_ids = torch.arange(4)[None]
    with policy.computing_in(torch.float32):
        logits = policy.model(input_ids=token_ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert (policy.model(input_ids=token_ids).logits - logits).abs().max() > 0.1
