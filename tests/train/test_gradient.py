"""A step's gradient without the step is the trainer's own, prompt by prompt; short vectors keep its products."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from treegrpo_cli.errors import UserError
from treegrpo_cli.train.gradient import GradientTrainer
from treegrpo_cli.train.sketch import Sketch, flat
from treegrpo_cli.train.trainer import Trainer

from tests.steps import make_config, make_step, make_trees, set_rewards, step_of
from tests.tiny import make_tiny_model
from tests.updates import kept_gradients

LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "KL, a clip, a prefix weight": {"kl_coef": 0.1, "dual_clip": 1.5, "prefix_weight": 0.5},
    "a mean over rows": {"denominator": "sequence-mean"},
    "a constant denominator": {"denominator": "constant", "denominator_constant": 50.0},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), hidden=32)


@pytest.mark.parametrize(
    ("loss", "path"), [*((loss, "runs") for loss in LOSSES.values()), ({}, "chains")], ids=[*LOSSES, "on chains"]
)
def test_the_prompts_gradients_add_up_to_the_one_that_an_update_steps_by(
    model_dir: Path, loss: dict[str, Any], path: str
) -> None:
    config = make_config(
        model_dir, loss=loss, train={"attention_path": path, "prompts_per_step": 4}, optimizer={"max_grad_norm": 1e9}
    )
    forest, scores = make_step(3)
    by_prompt = dict(GradientTrainer(config).gradients(forest, scores))
    trainer = Trainer(config)
    with kept_gradients(trainer) as grads:
        trainer.update(forest, scores)
    expected = flat(grads[name] for name in trainer.policy.trained_parameters())
    assert list(by_prompt) == [0, 1, 2, 3]
    assert all(float(vector.norm()) > 0 for vector in by_prompt.values())
    assert float((sum(by_prompt.values()) - expected).norm()) <= 1e-4 * float(expected.norm())


def test_a_mini_batch_has_a_denominator_of_its_own_as_in_an_update(model_dir: Path) -> None:
    config = make_config(model_dir, train={"prompts_per_minibatch": 2})
    forest, scores = make_step(3)
    trainer = GradientTrainer(config)
    by_prompt = dict(trainer.gradients(forest, scores))
    first = dict(trainer.gradients(forest, scores, np.array([0, 1], dtype=np.uint32)))
    alone = dict(trainer.gradients(forest, scores, np.array([0], dtype=np.uint32)))
    assert torch.allclose(by_prompt[0], first[0], atol=1e-7)
    ratio = float(alone[0].norm() / first[0].norm())
    tokens = [_sampled(scores, forest, prompt) for prompt in (0, 1)]
    assert ratio == pytest.approx((tokens[0] + tokens[1]) / tokens[0], rel=1e-4)


def _sampled(scores: Any, forest: Any, prompt: int) -> float:
    """Z of a prompt: |L(n)| |gen(n)| summed."""
    columns = forest.columns()
    return float((scores.num_leaves * forest.gen_tokens())[columns["prompt"][columns["tree"]] == prompt].sum())


def test_asking_for_gradients_moves_no_weight_and_leaves_none_behind(model_dir: Path) -> None:
    trainer = GradientTrainer(make_config(model_dir))
    before = {name: weight.clone() for name, weight in trainer.state_dict_for_sampler()}
    one, other = (dict(trainer.gradients(*make_step(3))) for _ in range(2))
    assert all(torch.equal(one[prompt], other[prompt]) for prompt in one)
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.state_dict_for_sampler())
    assert all(weight.grad is None for weight in trainer.policy.trained_parameters().values())
    assert {len(vector) for vector in one.values()} == {trainer.num_parameters}


def test_a_prompt_whose_rewards_are_equal_has_no_gradient(model_dir: Path) -> None:
    trees = make_trees(3)
    for tree in trees:
        if tree["prompt"] == 1:
            set_rewards(tree, 0.5)
    by_prompt = dict(GradientTrainer(make_config(model_dir)).gradients(*step_of(trees)))
    assert [float(vector.norm()) > 0 for vector in by_prompt.values()] == [True, False, True, True]


def test_trainers_may_share_a_policy(model_dir: Path) -> None:
    first = GradientTrainer(make_config(model_dir))
    other = GradientTrainer(make_config(model_dir, loss={"denominator": "constant"}), policy=first.policy)
    assert other.policy is first.policy
    ours, theirs = (next(iter(trainer.gradients(*make_step(3))))[1] for trainer in (first, other))
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) == pytest.approx(1.0, abs=1e-5)


def test_a_path_longer_than_the_model_s_positions_is_one_line(tmp_path: Path) -> None:
    config = make_config(make_tiny_model(tmp_path / "short", hidden=32, max_model_len=24))
    forest, scores = make_step(3, turn_tokens=24)
    with pytest.raises(UserError, match=r"positions for 24; lower rollout\.max_context_tokens"):
        list(GradientTrainer(config).gradients(forest, scores))


def test_sketches_keep_inner_products_on_average_over_seeds() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 500, generator=generator)
    other += one
    found = [
        (float(short @ sketch([other])), float(short @ short))
        for sketch in (Sketch(32, seed) for seed in range(1000))
        for short in [sketch([one[:123], one[123:].view(-1, 1)])]
    ]
    product, square = np.mean(found, axis=0)
    error, square_error = np.std(found, axis=0) / np.sqrt(len(found))
    assert abs(product - float(one @ other)) < 4 * error
    assert abs(square - float(one @ one)) < 4 * square_error
    assert np.std(found, axis=0)[1] == pytest.approx(float(one @ one) * np.sqrt(2 / 32), rel=0.1)


def test_a_sketch_of_many_places_is_off_by_what_its_docstring_says() -> None:
    vector = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    error = [
        float(short @ short) / float(vector @ vector) - 1
        for seed in range(20)
        for short in [Sketch(2**15, seed)([vector])]
    ]
    assert np.sqrt(np.mean(np.square(error))) == pytest.approx(np.sqrt(2 / 2**15), rel=0.5)
