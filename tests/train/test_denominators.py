"""What a step's sum is divided by: GSPO's equation, rows that count the same however they are cut, the bonus's size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from treegrpo_cli.config.files import load_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train.trainer import Metrics, Trainer

from tests.chainwise import Rows
from tests.reference import walk
from tests.reference_layout import num_trained
from tests.steps import make_config, make_trees, set_rewards, step_of
from tests.tiny import make_tiny_model
from tests.updates import kept_gradients

MEAN = {"denominator": "sequence-mean"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32)


def updated(model_dir: Path, trees: Any, loss: dict[str, Any], **train: Any) -> tuple[Metrics, dict[str, Tensor]]:
    """An update's metrics and its last gradients."""
    config = make_config(
        model_dir, loss=loss, optimizer={"max_grad_norm": 1e9}, train={"attention_path": "chains"} | train
    )
    trainer = Trainer(config)
    with kept_gradients(trainer) as grads:
        metrics = trainer.update(*step_of(trees, "grpo"))
    return metrics, grads


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert float((ours[name] - grad).norm()) <= 2e-5 * float(grad.norm()), name


def test_a_ratio_and_a_mean_over_rows_are_gspo_as_published(model_dir: Path) -> None:
    """J = 1/G sum_i min(s_i A_i, clip(s_i) A_i), s_i = (pi(y_i | x) / pi_old(y_i | x)) ^ (1 / |y_i|)."""
    trees, clip = make_trees(0, num_prompts=3), 0.3
    rows = Rows.of(trees, "grpo")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    terms, clipped = [], 0
    for path in rows.paths():
        ids, sampled, old = zip(*(token for node in path for token in node["tokens"]), strict=True)
        log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
        at = [place for place in range(1, len(ids)) if sampled[place]]
        log_pi, log_old = sum(log_p[place - 1, ids[place]] for place in at), sum(old[place] for place in at)
        s = torch.exp((log_pi - log_old) / len(at))
        advantage = rows.advantage(path[-1], path[-1])
        terms.append(torch.minimum(s * advantage, s.clamp(1 - clip, 1 + clip) * advantage))
        clipped += not 1 - clip < float(s.detach()) < 1 + clip
    loss = -torch.stack(terms).mean()
    loss.backward()
    assert 0 < clipped < len(terms)

    metrics, grads = updated(model_dir, trees, {**MEAN, "ratio": "sequence", "clip_low": clip, "clip_high": clip})
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    assert_same(grads, {name: weight.grad for name, weight in model.named_parameters()})


@pytest.mark.parametrize("path", ["chains", "runs", "depth-first"])
def test_rows_count_the_same_however_a_step_is_cut(model_dir: Path, path: str) -> None:
    trees, loss = make_trees(1), MEAN | {"entropy_coef": 0.1}
    metrics, gradient = updated(model_dir, trees, loss)
    for tokens in (1, 100):
        cut, grads = updated(model_dir, trees, loss, attention_path=path, microbatch_tokens=tokens)
        assert_same(grads, gradient)
        for name in ("loss", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean"):
            assert cut[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-7)
            assert metrics[name] != 0


def test_each_minibatch_is_a_mean_over_its_own_rows(model_dir: Path) -> None:
    """At a learning rate of nothing, the losses of two mini-batches are those of their prompts alone."""
    trees = make_trees(2, num_prompts=2)
    config = make_config(
        model_dir,
        loss=MEAN,
        optimizer={"learning_rate": 1e-30},
        train={"attention_path": "chains", "prompts_per_minibatch": 1},
    )
    together = Trainer(config).update(*step_of(trees, "grpo"))
    prompts = sorted({tree["prompt"] for tree in trees})
    alone = [updated(model_dir, [tree for tree in trees if tree["prompt"] == one], MEAN)[0] for one in prompts]
    assert together["loss"] == pytest.approx(sum(metrics["loss"] for metrics in alone) / 2, rel=1e-4)


def test_rows_without_an_advantage_count_as_rows(model_dir: Path) -> None:
    """`dead_prompts = "keep"`: half of the rows may be a dead prompt's; so may rows of which no token is trained."""
    trees = make_trees(3, num_prompts=2)
    first = [tree for tree in trees if tree["prompt"] == trees[0]["prompt"]]
    rest = [tree for tree in trees if tree["prompt"] != trees[0]["prompt"]]
    for tree in rest:
        set_rewards(tree, 0.5)
    alone, _ = updated(model_dir, first, MEAN)
    num_rows = [len(Rows.of(some, "grpo").paths()) for some in (first, trees)]
    together, _ = updated(model_dir, trees, MEAN)
    assert together["loss"] == pytest.approx(alone["loss"] * num_rows[0] / num_rows[1], rel=1e-4)
    for node in (node for tree in rest for node in walk(tree["root"])):
        node["tokens"] = [(token, False, 0.0) for token, _, _ in node["tokens"]]
    assert updated(model_dir, trees, MEAN)[0]["loss"] == pytest.approx(together["loss"], rel=1e-5)


def test_the_entropy_bonus_is_what_the_setting_says(model_dir: Path) -> None:
    """Its share of the loss: under means that mean, and under a constant the sum of a row's entropies by it."""
    trees, coef = make_trees(4), 0.5
    lengths = [num_trained(path) for path in Rows.of(trees, "grpo").paths()]
    assert len(set(lengths)) > 1
    for denominator in ("token-mean", "sequence-mean", "constant"):
        loss = {"denominator": denominator, "denominator_constant": 100.0}
        plain, with_bonus = (updated(model_dir, trees, loss | {"entropy_coef": c})[0] for c in (0.0, coef))
        factor = float(np.mean(lengths)) / 100 if denominator == "constant" else 1.0
        bonus = plain["loss"] - with_bonus["loss"]
        assert bonus == pytest.approx(coef * plain["entropy"] * factor, rel=1e-3)


def test_a_mean_over_rows_takes_no_other_prefix_weight() -> None:
    with pytest.raises(UserError, match=r"loss: denominator = .sequence-mean. .* set prefix_weight = 1$") as refused:
        load_config(None, ["loss.denominator=sequence-mean", "loss.prefix_weight=0.5"])
    assert "\n" not in str(refused.value)
