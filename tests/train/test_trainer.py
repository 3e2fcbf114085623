"""One training step: against the definition row by row, its invariances, schedule, LoRA, errors."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, MixtralConfig
from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train import planner
from treegrpo_cli.train.batch import layouts, to_batch
from treegrpo_cli.train.checking import SelfChecks
from treegrpo_cli.train.paths import depth_first, named, runs
from treegrpo_cli.train.paths.flex import Flex
from treegrpo_cli.train.paths.runs import RunsPlan
from treegrpo_cli.train.schedule import learning_rate, num_optimizer_steps
from treegrpo_cli.train.self_check import Disagreement
from treegrpo_cli.train.trainer import Metrics, Trainer
from treegrpo_cli.train.tree_attention import TreeUnsupportedError

from tests.definition import by_definition
from tests.reference import Tree, walk
from tests.steps import VOCABULARY, make_chains, make_comb, make_config, make_step, make_trees, set_rewards, step_of
from tests.tiny import make_tiny_model
from tests.updates import kept_gradients

PATHS = ["chains", "runs", "depth-first"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32)


@pytest.fixture
def free_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planner count arithmetic alone: a model this small loses more to the calls of trees than it gains."""
    monkeypatch.setitem(runs.CALL_FLOPS, "cpu", 0.0)
    monkeypatch.setitem(depth_first.EDGE_FLOPS, "cpu", 1.0)


def gradients(
    config: Config, forest: Forest, scores: Scores, trainer: Trainer | None = None
) -> tuple[Metrics, dict[str, torch.Tensor]]:
    """Run one update; return its metrics and the clipped gradient of its last optimizer step."""
    trainer = trainer or Trainer(config)
    with kept_gradients(trainer) as grads:
        metrics = trainer.update(forest, scores)
    return metrics, grads


def of_training(metrics: Metrics) -> Metrics:
    """What no path may change: all but how the tokens were computed."""
    return {name: value for name, value in metrics.items() if not name.startswith("tree/")}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Tensor by tensor, relative to the whole tensor: single numbers may be sums that all but cancel."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm()) <= tolerance * float(tensor.norm()), name


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.state_dict_for_sampler()}


LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "KL, entropy, two clips, a prefix weight": {
        "kl_coef": 0.1,
        "entropy_coef": 0.05,
        "clip_high": 0.3,
        "dual_clip": 1.5,
        "prefix_weight": 0.5,
    },
    "a mean over rows": {
        "denominator": "sequence-mean",
        "kl_coef": 0.1,
        "entropy_coef": 0.05,
        "dual_clip": 1.5,
        "kl_ratio": True,
    },
    "a constant denominator": {"denominator": "constant", "denominator_constant": 50.0, "prefix_weight": 0.0},
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("path", "ratio"), [(path, ratio) for path in PATHS for ratio in ("token", "turn")] + [("chains", "sequence")]
)
def test_an_update_has_the_loss_and_gradient_of_the_definition(
    model_dir: Path, path: str, ratio: str, loss: str
) -> None:
    config = make_config(
        model_dir,
        loss={"ratio": ratio, **LOSSES[loss]},
        rollout={"temperature": 0.8},
        optimizer={"max_grad_norm": 1e9},
        train={"microbatch_tokens": 70, "attention_path": path},
    )
    trainer = Trainer(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the reference, so that the KL has a gradient
        for weight in trainer.policy.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=draw)
    model, ref = (AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32) for _ in range(2))
    model.load_state_dict(trainer.policy.model.state_dict())
    forest, scores = make_step(0, num_prompts=3)
    metrics, grads = gradients(config, forest, scores, trainer)
    expected = by_definition(model, ref, forest, scores, config)
    expected["loss"].backward()
    assert metrics["loss"] == pytest.approx(expected["loss"].item(), rel=1e-4, abs=1e-6)
    assert_same(grads, {name: weight.grad for name, weight in model.named_parameters()}, 2e-5)
    norm = math.sqrt(sum(float((weight.grad**2).sum()) for weight in model.parameters()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["entropy"] == pytest.approx(expected["entropy"].item(), rel=1e-4)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(expected["mismatch"].item(), rel=1e-4)
    if config.loss.kl_coef:
        assert metrics["kl"] == pytest.approx(expected["kl"].item(), rel=1e-3)
        assert metrics["kl"] > 0.01
    assert metrics["clip_ratio/low_mean"] > 0.02
    assert metrics["clip_ratio/high_mean"] > 0.02


def test_node_level_advantages_have_the_gradient_of_the_definition(model_dir: Path) -> None:
    config = make_config(model_dir, optimizer={"max_grad_norm": 1e9}, train={"attention_path": "runs"})
    forest, scores = step_of(make_trees(0, num_prompts=2), estimator="parent")
    _, grads = gradients(config, forest, scores)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    by_definition(model, model, forest, scores, config)["loss"].backward()
    assert_same(grads, {name: weight.grad for name, weight in model.named_parameters()}, 2e-5)


@pytest.mark.parametrize("path", PATHS)
def test_micro_batches_and_the_order_of_trees_leave_the_step_unchanged(model_dir: Path, path: str) -> None:
    trees = make_trees(1)
    shuffled = [trees[i] for i in np.random.default_rng(0).permutation(len(trees))]
    expected, gradient = gradients(make_config(model_dir, train={"attention_path": "chains"}), *step_of(trees))
    for order, tokens in ((trees, 16384), (trees, 1), (trees, 100), (shuffled, 100)):
        config = make_config(model_dir, train={"microbatch_tokens": tokens, "attention_path": path})
        metrics, grads = gradients(config, *step_of(order))
        assert metrics["tree/attention_path"] == path
        assert of_training(metrics) == pytest.approx(of_training(expected), rel=1e-4, abs=1e-7)
        assert_same(grads, gradient, 2e-5)


@pytest.mark.parametrize("path", ["runs", "depth-first"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_epochs_of_minibatches_end_where_chains_end(model_dir: Path, path: str, lora_rank: int) -> None:
    ended = []
    for taken in ("chains", path):
        config = make_config(
            model_dir,
            model={"lora_rank": lora_rank},
            loss={"kl_coef": 0.1, "ratio": "turn"},
            optimizer={"learning_rate": 1e-4},
            train={"num_epochs": 2, "prompts_per_minibatch": 3, "attention_path": taken},
        )
        trainer = Trainer(config)
        before = weights_of(trainer)
        history = [of_training(trainer.update(*make_step(step))) for step in range(2)]
        ended.append((history, {name: after - before[name] for name, after in trainer.state_dict_for_sampler()}))
    (chains, moved), (trees, also_moved) = ended
    assert trees[0] == pytest.approx(chains[0], rel=1e-3, abs=1e-6)
    assert trees[1] == pytest.approx(chains[1], rel=1e-3, abs=1e-6)
    assert_same(also_moved, moved, 0.01)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_gradient_checkpointing_leaves_the_gradient_unchanged(model_dir: Path, lora_rank: int, path: str) -> None:
    def train(gradient_checkpointing: bool) -> tuple[Metrics, dict[str, torch.Tensor], int]:
        """Also return how often a layer is computed."""
        model = {"lora_rank": lora_rank, "gradient_checkpointing": gradient_checkpointing}
        config = make_config(model_dir, model=model, train={"attention_path": path})
        trainer, calls = Trainer(config), []
        trainer.policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
        return *gradients(config, *make_step(2), trainer), len(calls)

    plain, saving = train(False), train(True)
    assert saving[2] == 2 * plain[2]
    assert of_training(saving[0]) == pytest.approx(of_training(plain[0]), rel=1e-5, abs=1e-7)
    assert any(float(grad.abs().max()) > 0 for grad in plain[1].values())
    assert_same(saving[1], plain[1], 1e-5)


def test_dropout_of_the_model_is_off(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, hidden=32)
    plain = Trainer(make_config(tmp_path)).update(*make_step(2))
    config_json = tmp_path / "config.json"
    text = config_json.read_text()
    assert '"attention_dropout": 0.0' in text
    config_json.write_text(text.replace('"attention_dropout": 0.0', '"attention_dropout": 0.5'))
    assert Trainer(make_config(tmp_path)).update(*make_step(2)) == plain


def test_dropout_of_adapters_follows_from_seed_and_step_alone(model_dir: Path) -> None:
    lora = {"lora_rank": 4, "lora_dropout": 0.5}

    def loss(seed: int, step: int, others_seed: int) -> float:
        trainer = Trainer(make_config(model_dir, model=lora, optimizer={"learning_rate": 1e-3}))
        trainer.config = trainer.config.model_copy(update={"seed": seed})
        with torch.no_grad():  # an adapter that does nothing yet has nothing to drop
            for number, weight in enumerate(trainer.policy.trained_parameters().values()):
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        trainer.step = step
        torch.manual_seed(others_seed)
        before = torch.get_rng_state()
        metrics = trainer.update(*make_step(0))
        assert torch.equal(torch.get_rng_state(), before)
        return float(metrics["loss"])

    assert loss(0, 1, 1) == loss(0, 1, 2)
    assert len({loss(0, 1, 1), loss(0, 2, 1), loss(1, 1, 1)}) == 3


@pytest.mark.parametrize(
    ("rank", "rate", "said"),
    [
        (0, None, None),
        (0, 1e-3, None),
        (
            0,
            2e-3,
            "optimizer.learning_rate = 0.002 is so high that training breaks down",
        ),
        (0, 1e-9, "optimizer.learning_rate = 1e-09 is too low to learn anything; useful values for all weights"),
        (4, None, None),
        (4, 1e-3, None),
        (4, 5e-7, "optimizer.learning_rate = 5e-07 is too low to learn anything; useful values for adapters are 1e-06"),
        (4, 0.1, "optimizer.learning_rate = 0.1 is so high that training breaks down; useful values for adapters"),
    ],
)
def test_a_rate_that_cannot_work_is_said_before_the_run_begins(
    model_dir: Path, rank: int, rate: float | None, said: str | None
) -> None:
    optimizer = {} if rate is None else {"learning_rate": rate}
    tables = {"model": {"path": str(model_dir), "lora_rank": rank}, "optimizer": optimizer}
    config = Config.model_validate(tables)
    lines: list[str] = []
    Trainer(config, lines.append)
    assert [line.startswith(f"warning: {said}") for line in lines] == ([] if said is None else [True])
    if rate is None:
        assert config.optimizer.learning_rate == (1e-5 if rank else 1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_prompts_with_no_advantage_stay_in_the_denominator(model_dir: Path, path: str) -> None:
    trees = make_trees(3, num_prompts=2)
    first = [tree for tree in trees if tree["prompt"] == 0]
    config = make_config(model_dir, train={"attention_path": path})
    alone = Trainer(config).update(*step_of(first))
    for tree in trees[2:]:
        set_rewards(tree, 0.5)
    forest, scores = step_of(trees)
    together = Trainer(config).update(forest, scores)
    rows = forest.chain_rows(scores)
    weights = np.split(rows.weights * rows.loss_mask, rows.row_start[1:-1].astype(int))
    tokens = [
        sum(float(row.sum()) for row, group in zip(weights, rows.group, strict=True) if group == g) for g in (0, 1)
    ]
    assert together["loss"] == pytest.approx(alone["loss"] * tokens[0] / sum(tokens), rel=1e-4)


def test_a_step_without_trained_tokens_leaves_the_weights_alone(model_dir: Path) -> None:
    unscored, unsampled = make_trees(4), make_trees(4)
    for tree in unscored:
        set_rewards(tree, None)
    for node in (node for tree in unsampled for node in walk(tree["root"])):
        node["tokens"] = [(token, False, 0.0) for token, _, _ in node["tokens"]]
    trainer = Trainer(make_config(model_dir))
    before = weights_of(trainer)
    for trees in (unscored, unsampled, []):
        metrics = trainer.update(*step_of(trees))
        assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0)
    assert trainer.step == 3
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, before[name])


def test_the_gradient_is_clipped_to_its_norm(model_dir: Path) -> None:
    metrics, grads = gradients(make_config(model_dir, optimizer={"max_grad_norm": 0.01}), *make_step(5))
    assert metrics["grad_norm"] > 0.01
    norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
    assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_no_gradient_outlives_its_step(model_dir: Path, path: str) -> None:
    """Nor that of the self-check; they are as large as the weights, and the engine may need the memory."""
    trainer = Trainer(make_config(model_dir, train={"attention_path": path}))
    with kept_gradients(trainer) as grads:
        trainer.update(*make_step(5))
    weights = trainer.policy.trained_parameters()
    assert grads.keys() == weights.keys()
    assert all(weight.grad is None for weight in weights.values())


def test_updates_on_the_same_step_lower_its_loss(model_dir: Path) -> None:
    config = make_config(model_dir, optimizer={"learning_rate": 1e-4})
    trainer, (forest, scores) = Trainer(config), make_step(6)
    losses = [trainer.update(forest, scores)["loss"] for _ in range(5)]
    assert losses[4] < losses[0]


def exact_logprobs(model_dir: Path, tree: Tree) -> None:
    """Give the sampled tokens of a tree the log-probabilities that the model itself gives them."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def visit(node: dict[str, Any], above: list[int]) -> None:
        ids = above + [token for token, _, _ in node["tokens"]]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
        node["tokens"] = [
            (token, sampled, float(logprobs[k - 1, token]) if sampled else 0.0)
            for k, (token, sampled, _) in enumerate(node["tokens"], start=len(above))
        ]
        for child in node["children"]:
            visit(child, ids)

    visit(tree["root"], [])


@pytest.mark.parametrize("path", PATHS)
def test_engine_mismatch_is_measured_before_any_update(model_dir: Path, path: str) -> None:
    train = {"num_epochs": 3, "prompts_per_minibatch": 4, "attention_path": path}
    [tree] = make_trees(7, num_prompts=1, trees_a_prompt=1)
    exact_logprobs(model_dir, tree)
    turn = tree["root"]["children"][0]
    token, sampled, logprob = turn["tokens"][1]
    turn["tokens"][1] = (token, sampled, logprob - 0.25)
    forest, scores = step_of([tree])
    metrics = Trainer(make_config(model_dir, train=train)).update(forest, scores)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0.25, rel=1e-4)
    rows = forest.chain_rows(scores)
    num_leaves = len([leaf for leaf in walk(turn) if leaf["reward"] is not None])
    mean = 0.25 * num_leaves / float((rows.weights * rows.loss_mask).sum())
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(mean, rel=1e-3)


def test_every_epoch_and_minibatch_is_an_optimizer_step(model_dir: Path) -> None:
    trainer = Trainer(make_config(model_dir, train={"prompts_per_minibatch": 2, "num_epochs": 2}))
    trainer.update(*make_step(8))
    (state, *_rest) = trainer.optimizer.state.values()
    assert int(state["step"]) == 4  # 2 mini-batches x 2 epochs


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
    rates = [trainer.update(*make_step(step))["learning_rate"] for step in range(2)]
    assert rates == pytest.approx([1e-3 * 5 / 8, 1e-3 * 1 / 8])


def test_short_and_long_steps_keep_their_place_in_the_schedule(model_dir: Path) -> None:
    config = make_config(
        model_dir,
        optimizer={"learning_rate": 1e-3, "schedule": "linear"},
        train={"num_steps": 2, "prompts_per_step": 4, "prompts_per_minibatch": 2},
    )
    trainer = Trainer(config)
    assert trainer.update(*make_step(0, num_prompts=1))["learning_rate"] == pytest.approx(1e-3)
    assert trainer.update(*make_step(0, num_prompts=4))["learning_rate"] == pytest.approx(1e-3 / 4)
    assert Trainer(config).update(*make_step(0, num_prompts=6))["learning_rate"] == pytest.approx(1e-3 * 3 / 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_adapters_compute_what_the_adapted_model_computes(model_dir: Path, dtype: str) -> None:
    config = make_config(
        model_dir,
        model={"lora_rank": 4, "dtype": dtype},
        loss={"kl_coef": 0.1},
        optimizer={"learning_rate": 1e-2},
    )
    trainer = Trainer(config)
    first = trainer.update(*make_step(0))
    second = trainer.update(*make_step(1))
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
    trainer.update(*make_step(0))
    for name, weight in trainer.policy.trained_parameters().items():
        assert weight.dtype == torch.float32
        # Adam's first step moves every weight with a gradient by the learning rate
        moved = (weight.detach() - before[name]).abs()
        assert moved.max() == pytest.approx(1e-6, rel=0.2)
    assert {weight.dtype for _, weight in trainer.state_dict_for_sampler()} == {torch.bfloat16}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_bfloat16_reference_agrees_bit_for_bit_with_the_policy_it_copies(
    tmp_path: Path, tied: bool, path: str
) -> None:
    make_tiny_model(tmp_path, hidden=32, tied=tied)
    config = make_config(tmp_path, model={"dtype": "bfloat16"}, loss={"kl_coef": 0.1})
    policy = Trainer(config).policy
    # weights that bfloat16 cannot hold, as a checkpoint in float32 may have
    [layout] = layouts(*make_step(0), 1.0, 4, shared=path != "chains")
    [micro] = layout.micro_batches(16384)
    batch = to_batch(micro)
    assert torch.equal(policy.log_probs(batch, named(path)), policy.ref_log_probs(batch, named(path)))
    assert policy.reference.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"rollout": {"top_p": 0.9}}, "rollout.top_p"),
        ({"rollout": {"top_k": 20}}, "rollout.top_k"),
        ({"model": {"path": ""}}, "model.path"),
        ({"model": {"device": "toaster"}}, "model.device"),
        ({"model": {"lora_rank": 2, "lora_target_modules": ["no_such"]}}, "model.lora_target_modules"),
        ({"model": {"lora_rank": 2, "lora_target_modules": ["q_proj", "k_prj"]}}, "has no module called 'k_prj'"),
        ({"model": {"lora_rank": 2, "lora_target_modules": "(("}}, "model.lora_target_modules: missing"),
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
    trainer, trees = Trainer(make_config(model_dir)), make_trees(0)
    trainer.update(*step_of(trees))
    before = weights_of(trainer)
    turn = trees[0]["root"]["children"][0]
    token, sampled, _ = turn["tokens"][1]
    turn["tokens"][1] = (token, sampled, -1e4)  # an engine that never draws this token: an infinite ratio
    with pytest.raises(UserError, match=r"step 2: loss (nan|inf)"):
        trainer.update(*step_of(trees))
    assert trainer.step == 1
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, before[name])


def test_running_out_of_memory_says_what_to_lower(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = Trainer(make_config(model_dir))
    monkeypatch.setattr(trainer.policy, "backward", explode)
    with pytest.raises(UserError, match=r"train\.microbatch_tokens, now 16384"):
        trainer.update(*make_step(0))


def test_a_step_says_how_many_tokens_it_computed_and_how(model_dir: Path) -> None:
    forest, scores = make_step(0)
    layout = forest.pack(scores)
    cut = sum(len(micro.token_ids) for micro in layout.micro_batches(60))
    chain_tokens, unique = int(layout.path_tokens.sum()), len(layout.token_ids)
    assert unique < cut < chain_tokens
    for path, computed in {"chains": chain_tokens, "runs": cut, "depth-first": unique}.items():
        config = make_config(model_dir, train={"attention_path": path, "microbatch_tokens": 60, "num_epochs": 2})
        metrics = Trainer(config).update(forest, scores)
        assert metrics["tree/attention_path"] == path
        assert metrics["tree/computed_tokens"] == computed
        assert metrics["tree/chain_tokens"] == chain_tokens
        assert metrics["tree/trained_tokens"] == 2 * computed


@pytest.mark.usefixtures("free_calls")
def test_the_path_is_explained_once_and_again_when_it_changes(model_dir: Path) -> None:
    lines: list[str] = []
    trainer = Trainer(make_config(model_dir), lines.append)
    steps = (make_step(0), make_step(1), make_chains(0), make_chains(1), make_step(2))
    paths = [trainer.update(*step)["tree/attention_path"] for step in steps]
    assert paths == ["runs", "runs", "chains", "chains", "runs"]
    layout = steps[0][0].pack(steps[0][1])
    assert lines[0].startswith(
        f"training on runs: {len(layout.token_ids)} tokens for {layout.path_tokens.sum()} of chains, "
    )
    assert lines[1].startswith(f"training on chains: {steps[2][0].num_tokens} tokens, of which too few are shared")
    assert lines[2].startswith("training on runs: ")
    assert len(lines) == 3


@pytest.mark.parametrize(("path", "is_checked"), [("auto", [False, True, False]), ("runs", [True, False, False])])
@pytest.mark.usefixtures("free_calls")
def test_a_tree_path_is_checked_once_and_on_siblings_also_where_the_step_has_none(
    model_dir: Path, path: str, is_checked: list[bool]
) -> None:
    trainer = Trainer(make_config(model_dir, train={"attention_path": path}))
    metrics = [trainer.update(*step) for step in (make_chains(0), make_step(0), make_step(1))]
    assert ["tree/self_check" in step for step in metrics] == is_checked
    assert 0 < metrics[is_checked.index(True)]["tree/self_check"] < 1e-5


def test_every_path_is_checked_when_it_is_first_taken(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make_config(model_dir))
    checked = []
    for path in ("runs", "runs", "depth-first", "runs"):
        monkeypatch.setattr(
            "treegrpo_cli.train.path_choice.choose", lambda *_, path=path: planner.Choice(named(path), "as asked")
        )
        checked.append("tree/self_check" in trainer.update(*make_step(0)))
    assert checked == [True, False, True, False]
    assert list(trainer.paths.checks.found) == ["chains", "runs", "depth-first"]


def test_equal_rewards_beside_a_kl_are_nothing_against_a_path(model_dir: Path) -> None:
    """The objective's gradient is 0 then, and any difference from it would be infinite."""
    trees = make_trees(0)
    for tree in trees:
        set_rewards(tree, 1.0)
    trainer = Trainer(make_config(model_dir, loss={"kl_coef": 0.1}, train={"attention_path": "runs"}))
    assert 0 < trainer.update(*step_of(trees))["tree/self_check"] < 1e-5


def test_the_self_check_leaves_the_update_as_it_is(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(model_dir, loss={"kl_coef": 0.1}, train={"attention_path": "runs"})
    checked = Trainer(config)
    expected = of_training(checked.update(*make_step(0)))
    monkeypatch.setattr(SelfChecks, "check", lambda *_: None)
    monkeypatch.setattr(SelfChecks, "check_chains", lambda _: None)
    unchecked = Trainer(config)
    assert of_training(unchecked.update(*make_step(0))) == expected
    for name, weight in unchecked.state_dict_for_sampler():
        assert torch.equal(weight, weights_of(checked)[name])


@pytest.mark.usefixtures("free_calls")
def test_a_tree_that_exceeds_the_budget_goes_depth_first(model_dir: Path) -> None:
    lines: list[str] = []
    trainer = Trainer(make_config(model_dir, train={"microbatch_tokens": 20}), lines.append)
    metrics = trainer.update(*step_of(make_comb(0)))
    assert metrics["tree/attention_path"] == "depth-first"
    assert len(lines) == 1
    assert "exceeds" not in lines[0]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_longer_than_the_budget_goes_alone_and_is_said(model_dir: Path, path: str) -> None:
    lines: list[str] = []
    forest, scores = make_step(0, num_prompts=2)
    train = {"attention_path": path, "microbatch_tokens": 10}
    metrics = Trainer(make_config(model_dir, train=train), lines.append).update(forest, scores)
    whole = Trainer(make_config(model_dir, train=train | {"microbatch_tokens": 16384})).update(forest, scores)
    assert of_training(metrics) == pytest.approx(of_training(whole), rel=1e-4, abs=1e-7)
    longest = int(forest.pack(scores).path_tokens.max())
    said = f"; a path of {longest} tokens exceeds train.microbatch_tokens = 10 and goes alone"
    assert [line.endswith(said) for line in lines] == [path != "depth-first"]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"loss": {"ratio": "sequence"}}, "a ratio over whole sequences"),
        ({"model": {"lora_rank": 2, "lora_dropout": 0.1}}, "with dropout, a shared token is drawn once"),
    ],
)
@pytest.mark.usefixtures("free_calls")
def test_what_trees_cannot_train_goes_by_chains_and_is_refused_where_a_tree_path_is_asked_for(
    model_dir: Path, sections: dict[str, dict[str, object]], said: str
) -> None:
    lines: list[str] = []
    metrics = Trainer(make_config(model_dir, **sections), lines.append).update(*make_step(0))
    assert metrics["tree/attention_path"] == "chains"
    [line] = lines
    assert said in line
    for path in ("runs", "depth-first"):
        with pytest.raises(UserError, match=rf"train\.attention_path: {path} .*{said}") as raised:
            Trainer(make_config(model_dir, **sections, train={"attention_path": path}))
        assert "\n" not in str(raised.value)


def test_a_path_that_the_device_cannot_compute_is_refused_before_the_run_begins(model_dir: Path) -> None:
    with pytest.raises(
        UserError, match=r"^train\.attention_path: flex cannot .* FlexAttention has no gradient on cpu$"
    ):
        Trainer(make_config(model_dir, train={"attention_path": "flex"}))


@pytest.mark.parametrize("found", [None, Disagreement(0.0, None, longest=10_000)])
@pytest.mark.parametrize("step", [make_step, make_chains])
def test_a_path_that_this_machine_cannot_compute_is_refused_in_one_line(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, step: Any, found: Disagreement | None
) -> None:
    """What is known against it comes late; a run that was checked on another machine may go on here."""
    monkeypatch.setattr(Flex, "refusal", lambda *_: None)
    trainer = Trainer(make_config(model_dir, train={"attention_path": "flex"}))
    trainer.paths.checks.found = {} if found is None else {"flex": found}
    before = weights_of(trainer)
    with pytest.raises(
        UserError, match=r"^train\.attention_path: flex cannot .* FlexAttention has no gradient on cpu$"
    ):
        trainer.update(*step(0))
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, before[name])


def test_a_path_longer_than_the_models_positions_is_refused_in_one_line(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, hidden=32, max_model_len=20)
    forest, scores = make_step(0)
    longest = int(forest.pack(scores).path_tokens.max())
    assert longest > 20
    said = (
        f"^step 1: a path of {longest} tokens, and model.path has positions for 20; lower rollout.max_context_tokens$"
    )
    for path in ("auto", "chains"):
        with pytest.raises(UserError, match=said):
            Trainer(make_config(tmp_path, train={"attention_path": path})).update(forest, scores)


def forget_the_tree(
    _plan: RunsPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *_: object
) -> torch.Tensor:
    """Causal attention over all tokens that lie in front: siblings see each other."""
    return functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=True
    ).transpose(1, 2)


def refuse(*_: object) -> torch.Tensor:
    raise TreeUnsupportedError("it attends in its own way")


def fail(*_: object) -> torch.Tensor:
    raise IndexError("head 7\nof 4")


@pytest.mark.parametrize(
    ("attend", "said"),
    [
        (forget_the_tree, "runs and chains differ by"),
        (refuse, "it attends in its own way"),
        (fail, "IndexError: head 7 of 4"),
    ],
)
@pytest.mark.usefixtures("free_calls")
def test_a_self_check_that_disagrees_warns_and_trains_on_chains(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, attend: Any, said: str
) -> None:
    loss = {"kl_coef": 0.1}
    chains = Trainer(make_config(model_dir, loss=loss, train={"attention_path": "chains"}))
    expected = [of_training(chains.update(*make_step(step))) for step in range(2)]
    monkeypatch.setattr(RunsPlan, "attend", attend)
    lines: list[str] = []
    trainer = Trainer(make_config(model_dir, loss=loss), lines.append)
    metrics = [trainer.update(*make_step(step)) for step in range(2)]
    assert [of_training(step) for step in metrics] == expected
    assert {step["tree/attention_path"] for step in metrics} == {"chains"}
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, weights_of(chains)[name])
    warning, explanation = lines
    assert warning.startswith(f"warning: trees are trained on as chains: {said}")
    assert explanation.startswith("training on chains: ")
    if attend is forget_the_tree:
        assert metrics[0]["tree/self_check"] > 1e-2


def test_a_self_check_that_disagrees_is_an_error_where_the_path_was_asked_for(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunsPlan, "attend", forget_the_tree)
    trainer = Trainer(make_config(model_dir, train={"attention_path": "runs"}))
    before = weights_of(trainer)
    with pytest.raises(UserError, match=r"^train\.attention_path: runs .* runs and chains differ by .* on this model$"):
        trainer.update(*make_step(0))
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("path", ["runs", "depth-first", "dense"])
def test_bfloat16_trees_are_as_near_to_chains_as_bfloat16_is(model_dir: Path, path: str) -> None:
    config = make_config(model_dir, model={"dtype": "bfloat16"}, train={"attention_path": path})
    assert Trainer(config).update(*make_step(0))["tree/self_check"] < 0.05
