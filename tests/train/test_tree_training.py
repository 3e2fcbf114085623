"""Every token of a forest once gives the loss, gradient and update of its rows, each alone through the whole model."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.policy import Policy

from tests.chainwise import Rows, random_trees
from tests.families import FAMILIES, VOCABULARY, Float64, make_trainer, relative, save_model, to_float64
from tests.updates import Case, actual_update, assert_equal, expected_update

WHOLE = 10_000
PATHS = {
    "runs": ("runs", WHOLE),
    "runs, cut at branches": ("runs", 24),
    "dense": ("dense", WHOLE),
    "depth-first": ("depth-first", 24),
    "chains": ("chains", WHOLE),
    "chains, a few rows at a time": ("chains", 70),
}
"""Attention path and tokens of a micro-batch; the longest row of the forests is longer than the least of these."""

SUM = [{"estimator": "tree-grpo"}, {"estimator": "parent", "weight": 2.0}, {"estimator": "sibling", "weight": 0.5}]
MASKED = [
    {"estimator": "grpo"},
    {"estimator": "tree-grpo", "weight": 0.7, "mask": "tool-calls"},
    {"estimator": "parent", "weight": 2.0},
    {"estimator": "sibling", "weight": 3.0, "mask": "tool-calls"},
]
CASES = {
    "grpo, a token's ratio": Case({}, "grpo", 0),
    "tree-grpo, a turn's ratio, KL, entropy, p = 1/2": Case(
        {
            "ratio": "turn",
            "prefix_weight": 0.5,
            "kl_coef": 0.1,
            "entropy_coef": 0.05,
            "denominator": "constant",
            "denominator_constant": 20.0,
        },
        "tree-grpo",
        1,
    ),
    "parent, a token's ratio, dual clip, KL, p = 0": Case(
        {"prefix_weight": 0.0, "dual_clip": 1.8, "kl_coef": 0.1, "clip_high": 0.28},
        "parent",
        2,
        ("low", "high", "dual"),
        {"roots": "tree"},
        0.8,
    ),
    "parent, a turn's ratio, dual clip, entropy": Case(
        {"ratio": "turn", "dual_clip": 1.5, "entropy_coef": 0.1, "clip_low": 0.1}, "parent", 5, ("low", "high", "dual")
    ),
    "grpo, a turn's ratio, dual clip, p = 0": Case(
        {"ratio": "turn", "dual_clip": 1.5, "prefix_weight": 0.0}, "grpo", 4, ("low", "high", "dual")
    ),
    "grpo, a turn's ratio to the trainer's own policy, weights for the engine's": Case(
        {"ratio": "turn", "importance_clip": 2.0, "kl_coef": 0.1, "kl_ratio": True}, "grpo", 1, ()
    ),
    "a sum of both levels, a token's ratio, dual clip, KL, entropy, p = 1/2": Case(
        {"dual_clip": 1.5, "kl_coef": 0.1, "entropy_coef": 0.05, "prefix_weight": 0.5},
        "sum",
        5,
        ("low", "high", "dual"),
        {"terms": SUM},
    ),
    "a sum of both levels, a turn's ratio, a mean over rows": Case(
        {"ratio": "turn", "denominator": "sequence-mean", "entropy_coef": 0.05}, "sum", 1, ("low",), {"terms": SUM}
    ),
    "masked terms, a token's ratio, dual clip, KL, entropy, p = 1/2": Case(
        {"dual_clip": 1.5, "kl_coef": 0.1, "entropy_coef": 0.05, "prefix_weight": 0.5},
        "sum",
        5,
        ("low", "high", "dual"),
        {"terms": MASKED},
    ),
    "masked terms, a turn's ratio, a mean over rows": Case(
        {"ratio": "turn", "denominator": "sequence-mean", "kl_coef": 0.1}, "sum", 1, ("low",), {"terms": MASKED}
    ),
    "a masked term alone, a turn's ratio": Case({"ratio": "turn"}, "sum", 1, ("low",), {"terms": MASKED[-1:]}),
    "weights of the nodes' own, a token's ratio, dual clip, KL": Case(
        {"dual_clip": 1.5, "kl_coef": 0.1, "entropy_coef": 0.05}, "own weights", 5, ("low", "high", "dual")
    ),
    "causal by reach, a token's ratio, KL": Case({"kl_coef": 0.1}, "causal", 5, ("low", "high"), {"weight": "reach"}),
    "state-loo, a turn's ratio, entropy": Case({"ratio": "turn", "entropy_coef": 0.05}, "state-loo", 1, ("low",)),
    "grpo, a mean over rows, KL, entropy": Case(
        {"denominator": "sequence-mean", "kl_coef": 0.1, "entropy_coef": 0.05}, "grpo", 2
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def check_paths(model_dir: Path, case: Case, tolerance: float, monkeypatch: pytest.MonkeyPatch | None) -> None:
    """Compare every path with the chains; with `monkeypatch`, in float64."""
    expected = None
    for name, (path, budget) in PATHS.items():
        rollout = {"temperature": case.temperature}
        trainer = make_trainer(model_dir, path, case.loss, train={"microbatch_tokens": budget}, rollout=rollout)
        mode: AbstractContextManager[Any] = nullcontext()
        if monkeypatch is not None:
            mode = Float64()
            to_float64(trainer, monkeypatch)
        with mode:
            expected = expected or expected_update(trainer, case)
            assert_equal(actual_update(trainer, case), expected, tolerance, name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_float64_every_path_equals_the_chains(model_dir: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check_paths(model_dir, case, 1e-12, monkeypatch)


def test_in_float32_every_path_equals_the_chains_to_rounding(model_dir: Path) -> None:
    check_paths(model_dir, CASES["tree-grpo, a turn's ratio, KL, entropy, p = 1/2"], 1e-5, None)


@pytest.mark.parametrize("path", ["runs", "dense", "depth-first"])
def test_a_checkpointed_layer_computes_the_same_again(path: str, tmp_path: Path) -> None:
    """While its gradient is computed a layer's forward runs once more and must attend as before."""
    case, model_dir = CASES["grpo, a token's ratio"], save_model(FAMILIES["gemma3"], tmp_path)
    plain, checkpointed = (
        actual_update(make_trainer(model_dir, path, case.loss, model={"gradient_checkpointing": flag}), case)
        for flag in (False, True)
    )
    assert checkpointed.loss == plain.loss
    for name, grad in plain.grads.items():
        assert torch.equal(checkpointed.grads[name], grad), name


@pytest.mark.parametrize("seed", {case.seed for case in CASES.values()})
def test_the_random_forests_hold_what_is_hard(seed: int) -> None:
    """Else equality would say little: shared turns with advantages of both signs, turns that begin alike, and so on."""
    rows = Rows.of(random_trees(seed, VOCABULARY), "grpo")
    layout = rows.forest.pack(rows.scores)
    [whole] = layout.micro_batches(WHOLE)
    assert sum(layout.path_tokens) > 1.5 * len(layout.token_ids), "little is shared"
    assert ((whole.gain > 0) & (whole.penalty < 0)).any()
    assert len(whole.target_row) > len(whole.predictors), "no token predicts several"
    assert len(layout.micro_batches(24)) > 3
    assert 20 < max(layout.path_tokens) < 80
    assert any(leaf["reward"] is None for leaf in rows.nodes if not leaf["children"])
    turns = [node["tokens"] for node in rows.nodes]
    assert any(len(tokens) == 1 for tokens in turns)
    openings = [[child["tokens"][0][0] for child in node["children"]] for node in rows.nodes]
    assert any(len(set(first)) < len(first) for first in openings), "no siblings begin alike"


def policy_gradient(policy: Policy, rows: Rows, path: str) -> Tensor:
    """The gradient of -sum of A log pi over the rows, of all weights in one vector: nothing clips, no ratio weighs."""
    for weight in policy.model.parameters():
        weight.grad = None
    [whole] = rows.forest.pack(rows.scores, shared=path != "chains").micro_batches(WHOLE)
    batch = to_batch(whole)
    advantages = batch.gain + batch.penalty
    policy.backward(batch, named(path), lambda logprobs, _, which: -(advantages[which] * logprobs).sum(), is_local=True)
    return torch.cat([weight.grad.flatten() for weight in policy.model.parameters()])


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_in_bfloat16_trees_are_no_noisier_than_padded_chains(family: str, tmp_path: Path) -> None:
    """Against the truth of float32, root mean square over several forests."""
    model_dir = save_model(FAMILIES[family], tmp_path)
    exact, rounded = (
        make_trainer(model_dir, "runs", {}, model={"dtype": dtype}).policy for dtype in ("float32", "bfloat16")
    )
    squares = dict.fromkeys(("chains", "runs", "dense", "depth-first"), 0.0)
    for seed in range(6):
        rows = Rows.of(random_trees(seed, VOCABULARY, num_turns=12), "grpo")
        truth = policy_gradient(exact, rows, "chains")
        for path in squares:
            squares[path] += relative(policy_gradient(rounded, rows, path), truth) ** 2
    for path in squares:
        assert squares[path] <= 1.15**2 * squares["chains"], path
    assert squares["chains"] > 0, "bfloat16 rounds nothing"
