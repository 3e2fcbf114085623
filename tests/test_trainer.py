"""One training step: against the definition row by row, its invariances, schedule, LoRA, errors."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig
from treegrpo_cli.batch import microbatches, pad, rows_by_prompt
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.trainer import Trainer, learning_rate, num_optimizer_steps

from tests.rows import VOCABULARY, Rows, make_config, make_rows, reorder
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32)


def gradients(config: Config, rows: list[Rows]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Run one update; return its metrics and the clipped gradient of its last optimizer step."""
    trainer = Trainer(config)
    metrics = trainer.update(rows)
    grads = {name: weight.grad.clone() for name, weight in trainer.policy.trained_parameters().items()}
    return metrics, grads


def reference_loss(
    model: torch.nn.Module, ref: torch.nn.Module, rows: Rows, config: Config, constant: float | None
) -> torch.Tensor:
    """-(1/Z) sum of w [min(rho A, c A) - beta k3], row by row in full length, a token at a time."""
    total, z = torch.zeros((), dtype=torch.float64), 0.0
    for row in range(len(rows.group)):
        t = slice(int(rows.row_start[row]), int(rows.row_start[row + 1]))
        ids = torch.from_numpy(rows.input_ids[t].astype(np.int64))[None]
        policy = torch.log_softmax(model(input_ids=ids).logits[0].double() / config.rollout.temperature, -1)
        with torch.no_grad():
            frozen = torch.log_softmax(ref(input_ids=ids).logits[0].double() / config.rollout.temperature, -1)
        for k in range(1, ids.shape[1]):
            if not rows.loss_mask[t][k]:
                continue
            token, weight, advantage = ids[0, k], float(rows.weights[t][k]), float(rows.advantages[t][k])
            rho = torch.exp(policy[k - 1, token] - float(rows.logprobs[t][k]))
            value = torch.minimum(
                rho * advantage,
                rho.clamp(1 - config.loss.clip_low, 1 + config.loss.clip_high) * advantage,
            )
            d = frozen[k - 1, token] - policy[k - 1, token]
            total = total + weight * (value - config.loss.kl_coef * (torch.exp(d) - d - 1))
            z += weight
    return -total / (z if constant is None else constant * len(rows.group))


@pytest.mark.parametrize("denominator", ["token-mean", "constant"])
def test_an_update_has_the_loss_and_gradient_of_the_definition(model_dir: Path, denominator: str) -> None:
    config = make_config(
        model_dir,
        loss={"kl_coef": 0.1, "clip_high": 0.3, "denominator": denominator, "denominator_constant": 50.0},
        rollout={"temperature": 0.8},
        optimizer={"max_grad_norm": 1e9},
        train={"microbatch_tokens": 70},
    )
    rows = make_rows(0)
    metrics, grads = gradients(config, [rows])
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ref = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    loss = reference_loss(model, ref, rows, config, 50.0 if denominator == "constant" else None)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(grads[name], weight.grad, rtol=1e-4, atol=1e-6)
    norm = math.sqrt(sum(float((weight.grad**2).sum()) for weight in model.parameters()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-9)


def test_micro_batches_row_order_and_parts_leave_the_step_unchanged(model_dir: Path) -> None:
    rows = make_rows(1)
    one_by_one = [reorder(rows, [i for i in range(12) if rows.group[i] == g]) for g in range(4)]
    shuffled = reorder(rows, [int(i) for i in np.random.default_rng(0).permutation(12)])
    updated = []
    for parts, tokens in (([rows], 16384), ([rows], 1), ([rows], 100), (one_by_one, 100), ([shuffled], 100)):
        trainer = Trainer(make_config(model_dir, train={"microbatch_tokens": tokens}))
        metrics = trainer.update(parts)
        updated.append((metrics, dict(trainer.state_dict_for_sampler())))
    for metrics, weights in updated[1:]:
        assert metrics == pytest.approx(updated[0][0], rel=1e-4, abs=1e-7)
        for name, weight in updated[0][1].items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_gradient_checkpointing_leaves_the_gradient_unchanged(model_dir: Path, lora_rank: int) -> None:
    model = {"lora_rank": lora_rank}
    plain = gradients(make_config(model_dir, model=model), [make_rows(2)])
    model["gradient_checkpointing"] = True
    saving = gradients(make_config(model_dir, model=model), [make_rows(2)])
    assert saving[0] == pytest.approx(plain[0], rel=1e-6)
    for name, grad in plain[1].items():
        torch.testing.assert_close(saving[1][name], grad)


def test_dropout_of_the_model_is_off(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, hidden=32)
    plain = Trainer(make_config(tmp_path)).update([make_rows(2)])
    config_json = tmp_path / "config.json"
    text = config_json.read_text()
    assert '"attention_dropout": 0.0' in text
    config_json.write_text(text.replace('"attention_dropout": 0.0', '"attention_dropout": 0.5'))
    assert Trainer(make_config(tmp_path)).update([make_rows(2)]) == plain


def test_rows_with_no_advantage_stay_in_the_denominator(model_dir: Path) -> None:
    rows = make_rows(3, num_prompts=2)
    alone = Trainer(make_config(model_dir)).update([reorder(rows, [0, 1, 2])])
    rows.advantages[int(rows.row_start[3]) :] = 0
    together = Trainer(make_config(model_dir)).update([rows])
    t = [slice(int(rows.row_start[i]), int(rows.row_start[i + 1])) for i in range(6)]
    tokens = [float((rows.weights[span] * rows.loss_mask[span]).sum()) for span in t]
    share = sum(tokens[:3]) / sum(tokens)
    assert together["loss"] == pytest.approx(alone["loss"] * share, rel=1e-4)


def test_a_step_without_trained_tokens_leaves_the_weights_alone(model_dir: Path) -> None:
    rows = make_rows(4)
    rows.loss_mask[:] = False
    trainer = Trainer(make_config(model_dir))
    before = {name: weight.clone() for name, weight in trainer.state_dict_for_sampler()}
    for parts in ([rows], []):
        metrics = trainer.update(parts)
        assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0)
    assert trainer.step == 2
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, before[name])


def test_the_gradient_is_clipped_to_its_norm(model_dir: Path) -> None:
    metrics, grads = gradients(make_config(model_dir, optimizer={"max_grad_norm": 0.01}), [make_rows(5)])
    assert metrics["grad_norm"] > 0.01
    norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_updates_on_the_same_rows_lower_their_loss(model_dir: Path) -> None:
    config = make_config(model_dir, optimizer={"learning_rate": 1e-4})
    trainer, rows = Trainer(config), make_rows(6)
    losses = [trainer.update([rows])["loss"] for _ in range(5)]
    assert losses[4] < losses[0]


def test_engine_mismatch_is_measured_before_any_update(model_dir: Path) -> None:
    config = make_config(model_dir, train={"num_epochs": 3, "prompts_per_minibatch": 4})
    rows = make_rows(7)
    (row, *_rest) = [row for prompt in rows_by_prompt([rows]) for row in prompt]
    trainer = Trainer(config)
    one = reorder(rows, [0])
    with torch.no_grad():
        logprobs, _ = trainer.policy.logprobs(pad([row]))
    exact = np.zeros(len(one.logprobs), dtype=np.float32)
    exact[row.trained] = logprobs.numpy()
    one.logprobs = exact
    one.logprobs[np.flatnonzero(row.trained)[0]] -= 0.25
    metrics = trainer.update([one])
    weights = row.weights[row.trained]
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0.25, rel=1e-4)
    mean = 0.25 * float(weights[0]) / float(weights.sum())
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(mean, rel=1e-3)


def test_only_the_first_minibatch_of_a_step_sees_the_sampling_policy(model_dir: Path) -> None:
    trainer = Trainer(make_config(model_dir, train={"prompts_per_minibatch": 2, "num_epochs": 2}))
    trainer.update([make_rows(8)])
    (state, *_rest) = trainer.optimizer.state.values()
    assert int(state["step"]) == 4  # 2 mini-batches x 2 epochs


def test_micro_batches_hold_their_token_budget_with_padding() -> None:
    rows = [row for prompt in rows_by_prompt([make_rows(9, 10)]) for row in prompt]
    batches = list(microbatches(rows, 80))
    assert sorted(len(row) for batch in batches for row in batch) == sorted(map(len, rows))
    assert all(len(batch) * max(map(len, batch)) <= 80 for batch in batches)
    assert [len(batch) for batch in microbatches(rows, 1)] == [1] * 30


def schedule(**settings: object) -> list[float]:
    """Learning rates, in units of the full one, of 5 steps x 2 epochs x 2 mini-batches (3 + 1 prompts)."""
    train = {"num_steps": 5, "num_epochs": 2, "prompts_per_step": 4, "prompts_per_minibatch": 3}
    config = Config.model_validate({"train": train, "optimizer": {"learning_rate": 0.5, **settings}})
    assert num_optimizer_steps(config) == 20
    return [learning_rate(config, index) / 0.5 for index in range(20)]


def test_warm_up_ratio_is_a_share_of_all_optimizer_steps() -> None:
    assert schedule(warmup_ratio=0.2) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 17)
    assert schedule(warmup_ratio=0.9, warmup_steps=2) == pytest.approx([0.5] + [1.0] * 19)


def test_schedules_fall_towards_zero_behind_the_last_step() -> None:
    assert schedule(schedule="linear") == pytest.approx([1 - i / 20 for i in range(20)])
    cosine = [(1 + math.cos(math.pi * i / 16)) / 2 for i in range(16)]
    assert schedule(schedule="cosine", warmup_steps=4)[4:] == pytest.approx(cosine)


def test_every_epoch_and_minibatch_moves_the_schedule(model_dir: Path) -> None:
    train = {"num_steps": 2, "num_epochs": 2, "prompts_per_step": 4, "prompts_per_minibatch": 2}
    trainer = Trainer(make_config(model_dir, optimizer={"schedule": "linear"}, train=train))
    # 8 optimizer steps; a rollout step reports the rate of its last, the 4th and the 8th
    rates = [trainer.update([make_rows(step)])["learning_rate"] for step in range(2)]
    assert rates == pytest.approx([1e-3 * 5 / 8, 1e-3 * 1 / 8])


def test_short_and_long_steps_keep_their_place_in_the_schedule(model_dir: Path) -> None:
    config = make_config(
        model_dir,
        optimizer={"learning_rate": 1e-3, "schedule": "linear"},
        train={"num_steps": 2, "prompts_per_step": 4, "prompts_per_minibatch": 2},
    )
    trainer = Trainer(config)
    assert trainer.update([make_rows(0, num_prompts=1)])["learning_rate"] == pytest.approx(1e-3)
    assert trainer.update([make_rows(0, num_prompts=4)])["learning_rate"] == pytest.approx(1e-3 / 4)
    assert Trainer(config).update([make_rows(0, num_prompts=6)])["learning_rate"] == pytest.approx(1e-3 * 3 / 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_adapters_compute_what_the_adapted_model_computes(model_dir: Path, dtype: str) -> None:
    config = make_config(
        model_dir,
        model={"lora_rank": 4, "dtype": dtype},
        loss={"kl_coef": 0.1},
        optimizer={"learning_rate": 1e-2},
    )
    trainer = Trainer(config)
    first = trainer.update([make_rows(0)])
    second = trainer.update([make_rows(1)])
    assert first["kl"] == 0.0
    assert second["kl"] > 0.0
    adapter = {name for name in trainer.policy.trained_parameters() if "lora_" in name}
    assert adapter == set(trainer.policy.trained_parameters())
    base = {name: weight.clone() for name, weight in trainer.policy.network.state_dict().items()}
    merged = dict(trainer.policy.weights(torch.float32))
    plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    assert list(merged) == list(plain.state_dict())
    plain.load_state_dict(merged)
    ids = torch.arange(20)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        adapted = trainer.policy.network(input_ids=ids).logits.float()
        with trainer.policy.network.disable_adapter():
            moved = (trainer.policy.network(input_ids=ids).logits.float() - adapted).abs().mean()
        apart = (plain(input_ids=ids).logits.float() - adapted).abs().mean()
    assert apart < moved * (1e-4 if dtype == "float32" else 0.2)
    for name, weight in trainer.policy.network.state_dict().items():
        assert torch.equal(weight, base[name])


def test_the_sampler_gets_tied_embeddings_under_both_names(model_dir: Path) -> None:
    trainer = Trainer(make_config(model_dir))
    weights = dict(trainer.state_dict_for_sampler())
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    assert list(weights) == list(model.state_dict())


def test_bfloat16_training_moves_weights_by_less_than_bfloat16_resolves(model_dir: Path) -> None:
    config = make_config(model_dir, model={"dtype": "bfloat16"}, optimizer={"learning_rate": 1e-6})
    trainer = Trainer(config)
    before = {name: weight.detach().clone() for name, weight in trainer.policy.trained_parameters().items()}
    trainer.update([make_rows(0)])
    for name, weight in trainer.policy.trained_parameters().items():
        assert weight.dtype == torch.float32
        # Adam's first step moves every weight with a gradient by the learning rate
        moved = (weight.detach() - before[name]).abs()
        assert moved.max() == pytest.approx(1e-6, rel=0.2)
    assert {weight.dtype for _, weight in trainer.state_dict_for_sampler()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_a_bfloat16_reference_agrees_bit_for_bit_with_the_policy_it_copies(tmp_path: Path, tied: bool) -> None:
    make_tiny_model(tmp_path, hidden=32, tied=tied)
    config = make_config(tmp_path, model={"dtype": "bfloat16"}, loss={"kl_coef": 0.1})
    policy = Trainer(config).policy
    # weights that bfloat16 cannot hold, as a checkpoint in float32 may have
    batch = pad([row for prompt in rows_by_prompt([make_rows(0)]) for row in prompt])
    with torch.no_grad():
        assert torch.equal(policy.logprobs(batch)[0], policy.ref_logprobs(batch))
    assert policy.reference.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"rollout": {"top_p": 0.9}}, "rollout.top_p"),
        ({"rollout": {"top_k": 20}}, "rollout.top_k"),
        ({"model": {"path": ""}}, "model.path"),
        ({"model": {"device": "toaster"}}, "model.device"),
        ({"model": {"lora_rank": 2, "lora_target_modules": ["no_such"]}}, "model.lora_target_modules"),
        ({"model": {"lora_rank": 2, "lora_target_modules": ["embed_tokens"]}}, "tied embedding"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_settings_that_cannot_be_trained_with_are_refused(
    model_dir: Path, sections: dict[str, dict[str, object]], said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        Trainer(make_config(model_dir, **sections))
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_adapters_of_fused_experts_are_refused_since_they_would_not_be_merged(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="fused experts cannot be adapted"):
        Trainer(make_config(tmp_path, model={"lora_rank": 2}))
    modules = {"lora_rank": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    names = [name for name, _ in Trainer(make_config(tmp_path, model=modules)).state_dict_for_sampler()]
    assert names == list(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict())


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path: cannot load"):
        Trainer(make_config(tmp_path))


def test_a_loss_that_is_not_finite_stops_before_the_update(model_dir: Path) -> None:
    trainer, rows = Trainer(make_config(model_dir)), make_rows(0)
    trainer.update([rows])
    before = {name: weight.clone() for name, weight in trainer.state_dict_for_sampler()}
    rows.advantages[np.flatnonzero(rows.loss_mask)[3]] = np.nan
    with pytest.raises(UserError, match=r"step 2: loss nan"):
        trainer.update([rows])
    assert trainer.step == 1
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, before[name])


def test_running_out_of_memory_says_what_to_lower(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = Trainer(make_config(model_dir))
    monkeypatch.setattr(trainer.policy, "logprobs", explode)
    with pytest.raises(UserError, match=r"train\.microbatch_tokens, now 16384"):
        trainer.update([make_rows(0)])
