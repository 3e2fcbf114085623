"""The loss against the formulas, written out token by token in Python floats, value and gradient."""

import math
import random

import pytest
import torch
from torch import Tensor
from treegrpo_cli import loss as loss_module
from treegrpo_cli.loss import clipped_surrogate, k3, token_log_probs, token_terms

CLIP_LOW, CLIP_HIGH, DUAL_CLIP, KL_COEF = 0.2, 0.28, 3.0, 0.05


def slow_loss(
    policy: list[float],
    sampling: list[float],
    ref: list[float],
    advantages: list[float],
    weights: list[float],
    dual_clip: float | None,
) -> tuple[float, list[float]]:
    """Return -sum of w [surrogate - beta k3] and its gradient by policy log-probability."""
    total, grads = 0.0, []
    for p, s, r, a, w in zip(policy, sampling, ref, advantages, weights, strict=True):
        rho = math.exp(p - s)
        c = min(max(rho, 1 - CLIP_LOW), 1 + CLIP_HIGH)
        value, slope = rho * a, rho * a  # d rho / d p = rho
        if c * a < value:
            value, slope = c * a, 0.0
        if dual_clip is not None and a < 0 and value < dual_clip * a:
            value, slope = dual_clip * a, 0.0
        d = r - p
        total -= w * (value - KL_COEF * (math.exp(d) - d - 1))
        grads.append(-w * (slope - KL_COEF * (1 - math.exp(d))))
    return total, grads


def random_tokens(seed: int, n: int = 400) -> dict[str, list[float]]:
    """Return tokens with ratios from 0.1 to 7, advantages of both signs and 0, weights of 0 to 1."""
    rng = random.Random(seed)
    sampling = [-rng.expovariate(0.5) for _ in range(n)]
    return {
        "policy": [s + rng.uniform(-2.2, 1.9) for s in sampling],
        "sampling": sampling,
        "ref": [s + rng.gauss(0, 0.7) for s in sampling],
        "advantages": [rng.choice([0.0, rng.gauss(0, 1.5)]) for _ in range(n)],
        "weights": [rng.choice([1.0, 1.0, 0.5, 3**-0.5, 0.0]) for _ in range(n)],
    }


@pytest.mark.parametrize("dual_clip", [None, DUAL_CLIP])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_equal_the_formula_token_by_token(seed: int, dual_clip: float | None) -> None:
    tokens = random_tokens(seed)
    ratios = [math.exp(p - s) for p, s in zip(tokens["policy"], tokens["sampling"], strict=True)]
    assert min(ratios) < 1 - CLIP_LOW
    assert max(ratios) > DUAL_CLIP
    expected, expected_grad = slow_loss(*tokens.values(), dual_clip=dual_clip)
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in tokens.items()}
    policy = tensors["policy"].requires_grad_()
    terms = token_terms(
        policy,
        tensors["sampling"],
        tensors["advantages"],
        tensors["weights"],
        tensors["ref"],
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        dual_clip=dual_clip,
        kl_coef=KL_COEF,
    )
    loss = -terms.objective.sum()
    (grad,) = torch.autograd.grad(loss, policy)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert grad.tolist() == pytest.approx(expected_grad, rel=1e-12, abs=1e-14)


def test_a_token_at_ratio_one_has_the_plain_policy_gradient() -> None:
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    terms = token_terms(policy, policy.detach(), torch.tensor([2.0, -3.0]), torch.ones(2), clip_low=0.2, clip_high=0.2)
    (grad,) = torch.autograd.grad(terms.objective.sum(), policy)
    assert terms.objective.tolist() == [2.0, -3.0]
    assert grad.tolist() == [2.0, -3.0]


def test_a_token_counts_as_clipped_only_on_the_side_that_its_advantage_stops() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.5, 1.0])
    advantages = torch.tensor([-1.0, 1.0, 1.0, -1.0, 0.0, 1.0])
    terms = token_terms(ratio.log(), torch.zeros(6), advantages, torch.ones(6), clip_low=CLIP_LOW, clip_high=CLIP_HIGH)
    assert terms.clipped_low.tolist() == [True, False, False, False, False, False]
    assert terms.clipped_high.tolist() == [False, False, True, False, False, False]


def test_both_parts_of_an_advantage_equal_the_sum_over_replicated_rows() -> None:
    """S+ and S- of leaves with advantages 0.5, 1.5 and -1, at ratios inside and beyond every clip."""
    ratio = torch.tensor([0.3, 0.9, 1.1, 2.0, 9.0], dtype=torch.float64)
    leaves = [0.5, 1.5, -1.0]
    clips = {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "dual_clip": DUAL_CLIP}
    both = clipped_surrogate(ratio, torch.full((5,), 2.0).double(), torch.full((5,), -1.0).double(), **clips)
    rows = [
        -slow_loss([math.log(r)], [0.0], [math.log(r)], [a], [1.0], DUAL_CLIP)[0]
        for r in ratio.tolist()
        for a in leaves
    ]
    assert both.tolist() == pytest.approx([sum(rows[i : i + 3]) for i in range(0, 15, 3)], rel=1e-12)


def test_k3_has_the_gradient_one_minus_the_inverse_ratio() -> None:
    policy = torch.tensor([-0.5, -1.0, -3.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-0.5, -2.0, -1.0], dtype=torch.float64)
    kl = k3(policy, ref)
    (grad,) = torch.autograd.grad(kl.sum(), policy)
    # d = 0, -1, 2
    assert kl.tolist() == pytest.approx([0.0, math.exp(-1), math.exp(2) - 3])
    assert grad.tolist() == pytest.approx([0.0, 1 - math.exp(-1), 1 - math.exp(2)])


def test_k3_keeps_its_digits_where_the_policies_nearly_agree() -> None:
    kl = k3(torch.tensor([-1.0]), torch.tensor([-1.0 + 1e-3]))
    assert kl.item() == pytest.approx(5e-7, rel=0.1)


def test_log_probability_and_entropy_are_of_the_tempered_distribution() -> None:
    logits, temperature = [1.0, 3.0, -2.0], 0.7
    exps = [math.exp(x / temperature) for x in logits]
    probabilities = [e / sum(exps) for e in exps]
    log_probs, entropy = token_log_probs(torch.tensor([logits]).double(), torch.tensor([1]), temperature)
    assert log_probs.item() == pytest.approx(math.log(probabilities[1]), rel=1e-12)
    assert entropy.item() == pytest.approx(-sum(p * math.log(p) for p in probabilities), rel=1e-12)


def plain_log_probs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, targets[..., None]).squeeze(-1)


def test_chunks_change_neither_log_probabilities_nor_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "LOGIT_CHUNK", 3 * 11 + 1)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (2, 7), generator=generator)
    upstream = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    log_probs, _ = token_log_probs(logits, targets, 1.3)
    expected = plain_log_probs(logits, targets, 1.3)
    torch.testing.assert_close(log_probs, expected, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(log_probs, logits, upstream)
    (expected_grad,) = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-14)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.linspace(-3, 3, 1000).bfloat16()[None].requires_grad_()
    log_probs, _ = token_log_probs(logits, torch.tensor([7]))
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, plain_log_probs(logits.float(), torch.tensor([7]), 1.0))
    (grad,) = torch.autograd.grad(log_probs.sum(), logits)
    assert grad.dtype == torch.bfloat16


def test_a_logit_that_is_masked_out_leaves_the_entropy_finite() -> None:
    _, entropy = token_log_probs(torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([0]))
    assert entropy.item() == pytest.approx(math.log(2))
