"""Where the old policy is the trainer's own: its log-probabilities, and the weights for the sampler's difference."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from treegrpo_cli.config import LossConfig
from treegrpo_cli.config.files import load_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train.resolved_loss import resolved_loss
from treegrpo_cli.train.trainer import Trainer

from tests.definition import by_definition
from tests.reference import walk
from tests.steps import make_config, make_step, make_trees, step_of
from tests.tiny import make_tiny_model
from tests.updates import kept_gradients

PATHS = [(path, ratio) for path in ("chains", "runs", "depth-first") for ratio in ("token", "turn")]
RECOMPUTED = {"old_logprobs": "recomputed", "importance_clip": 1.4, "dual_clip": 1.5, "kl_coef": 0.1, "clip_low": 0.05}
TRUNCATED = "sampling/importance_sampling_ratio/truncated"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32)


def loaded(model_dir: Path, weights: dict[str, Tensor] | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if weights is not None:
        model.load_state_dict(weights)
    return model


def trainer_of(model_dir: Path, loss: dict[str, Any], **sections: dict[str, Any]) -> Trainer:
    sections["train"] = {"microbatch_tokens": 70, "attention_path": "chains"} | sections.get("train", {})
    optimizer = {"max_grad_norm": 1e9, "learning_rate": 1e-2}
    return Trainer(make_config(model_dir, loss=loss, optimizer=optimizer, **sections))


@pytest.mark.parametrize(("path", "ratio"), [*PATHS, ("chains", "sequence")])
def test_the_second_epochs_ratio_is_to_the_policy_before_the_first(model_dir: Path, path: str, ratio: str) -> None:
    loss, (forest, scores) = {"ratio": ratio, **RECOMPUTED}, make_step(0, num_prompts=3)
    once, twice = (
        trainer_of(model_dir, loss, train={"num_epochs": number, "attention_path": path}) for number in (1, 2)
    )
    first = once.update(forest, scores)
    with kept_gradients(twice) as grads:
        both = twice.update(forest, scores)

    old, policy = loaded(model_dir), loaded(model_dir, dict(once.state_dict_for_sampler()))
    expected = [by_definition(model, old, forest, scores, once.config, old) for model in (old, policy)]
    expected[1]["loss"].backward()
    assert grads.keys() == twice.policy.trained_parameters().keys()
    for name, grad in grads.items():
        difference = float((grad - policy.get_parameter(name).grad).norm())
        assert difference <= 5e-4 * float(grad.norm()), name
    assert first["loss"] == pytest.approx(expected[0]["loss"].item(), rel=1e-4, abs=1e-6)
    assert both["loss"] == pytest.approx(sum(each["loss"].item() for each in expected) / 2, rel=1e-3, abs=1e-5)
    assert first["clip_ratio/low_mean"] == first["clip_ratio/high_mean"] == 0.0
    assert both["clip_ratio/low_mean"] > 0
    for metrics in (first, both):
        assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(
            float(expected[0]["mismatch"]), rel=1e-4
        )
        assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(
            float(expected[0]["importance"]), rel=1e-4
        )
        assert metrics[TRUNCATED] == pytest.approx(float(expected[0]["truncated"]), rel=1e-4)
        assert 0.1 < metrics[TRUNCATED] < 0.9


@pytest.mark.parametrize("path", ["chains", "runs", "depth-first"])
def test_all_minibatches_are_recomputed_before_the_first_of_them_moves_a_weight(model_dir: Path, path: str) -> None:
    """Else the ratios of the second would all be 1, and nothing would be clipped."""
    train = {"prompts_per_minibatch": 2, "attention_path": path}
    loss = {"old_logprobs": "recomputed", "clip_low": 0.001, "clip_high": 0.001}
    metrics = trainer_of(model_dir, loss, train=train).update(*make_step(1))
    assert 0.1 < metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"] < 0.6


def test_a_single_update_forwards_the_policy_once(model_dir: Path) -> None:
    def forwards(loss: dict[str, Any], **train: Any) -> int:
        trainer, calls = trainer_of(model_dir, loss, train=train), []
        trainer.update(*make_step(2))  # the first one also checks the attention path
        trainer.policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
        trainer.update(*make_step(2))
        return len(calls)

    sampler, recomputed = {"old_logprobs": "sampler"}, {"old_logprobs": "recomputed"}
    once = forwards(sampler)
    assert forwards(recomputed) == once
    assert forwards(sampler, num_epochs=2) == 2 * once
    assert forwards(recomputed, num_epochs=2) == 3 * once


def test_the_samplers_log_probabilities_count_only_where_the_loss_reads_them(model_dir: Path) -> None:
    trees = make_trees(3)
    others = copy.deepcopy(trees)
    for node in (node for tree in others for node in walk(tree["root"])):
        node["tokens"] = [(token, sampled, logprob - 0.3 * sampled) for token, sampled, logprob in node["tokens"]]

    def losses(loss: dict[str, Any]) -> list[Any]:
        return [trainer_of(model_dir, loss).update(*step_of(each))["loss"] for each in (trees, others)]

    alone = losses({"old_logprobs": "recomputed"})
    assert alone[0] == alone[1]
    weighted, by_sampler = losses({"importance_clip": 2}), losses({"old_logprobs": "sampler"})
    assert len({alone[0], *weighted, *by_sampler}) == 5


def dropping(model_dir: Path, dropout: float) -> Trainer:
    trainer = trainer_of(model_dir, RECOMPUTED, model={"lora_rank": 4, "lora_dropout": dropout})
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # an adapter that does nothing yet has nothing to drop
        for weight in trainer.policy.trained_parameters().values():
            weight += 0.1 * torch.randn(weight.shape, generator=draw)
    return trainer


def test_what_is_recomputed_is_without_the_dropout_of_adapters(model_dir: Path) -> None:
    trainer = dropping(model_dir, 0.5)
    forest, scores = make_step(0)
    [layout] = trainer._lay_out(forest, scores, None)[0]
    [batch, *_] = trainer._batches(layout)
    modes = [module.training for module in trainer.policy.network.modules()]
    first, second = (trainer.policy.log_probs(batch, trainer.paths.path) for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in trainer.policy.network.modules()] == modes
    assert True in modes
    assert False in modes


def test_a_single_updates_ratio_is_to_the_policy_without_dropout(model_dir: Path) -> None:
    """It sampled, and the weights of the engine's difference are its own."""
    step = make_step(0)
    dropped, whole = (dropping(model_dir, dropout).update(*step) for dropout in (0.5, 0.0))
    for name in ("sampling_logp_difference/mean", "importance_sampling_ratio/mean"):
        assert dropped[f"sampling/{name}"] == pytest.approx(whole[f"sampling/{name}"], rel=1e-6)
    assert whole["clip_ratio/low_mean"] == 0
    assert dropped["clip_ratio/low_mean"] > 0


def test_bfloat16_corrects_for_the_engine_without_being_asked(model_dir: Path) -> None:
    metrics = trainer_of(model_dir, {}, model={"dtype": "bfloat16"}).update(*make_step(0))
    assert metrics["sampling/importance_sampling_ratio/mean"] <= 2.0
    assert metrics["clip_ratio/low_mean"] == 0.0


@pytest.mark.parametrize(
    ("loss", "dtype", "resolved"),
    [
        ({}, torch.float32, (False, None, None)),
        ({}, torch.bfloat16, (True, 2.0, 3.0)),
        ({"old_logprobs": "sampler"}, torch.bfloat16, (False, None, 3.0)),
        ({"old_logprobs": "recomputed"}, torch.float32, (True, None, None)),
        ({"importance_clip": 5}, torch.float32, (True, 5.0, None)),
        ({"importance_clip": 0, "dual_clip": 0}, torch.bfloat16, (True, None, None)),
        ({"importance_clip": None, "dual_clip": None}, torch.bfloat16, (True, None, None)),
        ({"dual_clip": 4}, torch.float32, (False, None, 4.0)),
    ],
)
def test_what_is_auto_follows_from_the_dtype(loss: dict[str, Any], dtype: torch.dtype, resolved: Any) -> None:
    found = resolved_loss(LossConfig.model_validate(loss), dtype)
    assert (found.recomputes, found.importance_clip, found.dual_clip) == resolved


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["loss.old_logprobs=sampler", "loss.importance_clip=2"], r"loss: importance_clip weighs what is recomputed"),
        (["loss.importance_clip=0.5"], r"loss.importance_clip: expected a number above 1, 0 \(off\) or auto, got 0.5$"),
        (["loss.dual_clip=on"], r"loss.dual_clip: expected a number above 1, 0 \(off\) or auto, got 'on'$"),
        (["loss.dual_clip=true"], r"loss.dual_clip: expected a number above 1, 0 \(off\) or auto, got True$"),
        (["loss.old_logprobs=engine"], r"loss.old_logprobs: .*got 'engine'"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_config(None, given)
    assert "\n" not in str(refused.value)


def test_a_setting_that_nothing_reads_is_said(model_dir: Path) -> None:
    def lines(**loss: Any) -> list[str]:
        said: list[str] = []
        Trainer(make_config(model_dir, loss=loss), said.append)
        return said

    assert lines(kl_ratio=True) == ["warning: loss.kl_ratio = true is not read: loss.kl_coef is 0"]
    [line] = lines(denominator="sequence-mean", denominator_constant=8)
    assert line.startswith("warning: loss.denominator_constant = 8 is not read: loss.denominator is ")
    assert lines(denominator="constant", denominator_constant=8, kl_ratio=True, kl_coef=0.1) == []
