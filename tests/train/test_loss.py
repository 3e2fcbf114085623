"""The loss against the formulas, written out token by token in Python floats, value and gradient."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from treegrpo_cli.train.loss import Targets, k3, token_terms

CLIP_LOW, CLIP_HIGH, DUAL_CLIP, KL_COEF, ENTROPY_COEF = 0.2, 0.28, 3.0, 0.05, 0.02
CLIPS = {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH}
Tokens = dict[str, list[float]]


def slow_loss(
    policy: list[float],
    sampling: list[float],
    ref: list[float],
    advantages: list[float],
    weights: list[float],
    entropy: list[float],
    dual_clip: float | None,
) -> tuple[float, list[float]]:
    """Return -sum of w [surrogate - beta k3 + eta H] and its gradient by policy log-probability, token ratio."""
    total, grads = 0.0, []
    for p, s, r, a, w, h in zip(policy, sampling, ref, advantages, weights, entropy, strict=True):
        rho = math.exp(p - s)
        c = min(max(rho, 1 - CLIP_LOW), 1 + CLIP_HIGH)
        value, slope = rho * a, rho * a  # d rho / d p = rho
        if c * a < value:
            value, slope = c * a, 0.0
        if dual_clip is not None and a < 0 and value < dual_clip * a:
            value, slope = dual_clip * a, 0.0
        d = r - p
        total -= w * (value - KL_COEF * (math.exp(d) - d - 1) + ENTROPY_COEF * h)
        grads.append(-w * (slope - KL_COEF * (1 - math.exp(d))))
    return total, grads


def random_tokens(seed: int, n: int = 400) -> Tokens:
    """Return tokens with ratios from 0.1 to 7, advantages of both signs and 0, weights of 0 to 1."""
    rng = random.Random(seed)
    sampling = [-rng.expovariate(0.5) for _ in range(n)]
    return {
        "policy": [s + rng.uniform(-2.2, 1.9) for s in sampling],
        "sampling": sampling,
        "ref": [s + rng.gauss(0, 0.7) for s in sampling],
        "advantages": [rng.choice([0.0, rng.gauss(0, 1.5)]) for _ in range(n)],
        "weights": [rng.choice([1.0, 1.0, 0.5, 3**-0.5, 0.0]) for _ in range(n)],
        "entropy": [rng.expovariate(0.5) for _ in range(n)],
    }


def tokens_in(segment: Sequence[int], seed: int) -> Tokens:
    """Return tokens whose ratios differ more between segments than within: below, inside, above, beyond all clips."""
    rng, tokens = random.Random(seed), random_tokens(seed, n=len(segment))
    shifts = (-0.9, 0.0, 0.7, 1.6)
    policy = [s + shifts[number % 4] + rng.gauss(0, 0.2) for s, number in zip(tokens["sampling"], segment, strict=True)]
    return tokens | {"policy": policy}


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def targets_of(tokens: Tokens, segment: Sequence[int] | None = None) -> Targets:
    """The tokens with one advantage each, as `token_terms` wants them."""
    weights = column(tokens["weights"])
    weighted = weights * column(tokens["advantages"])
    return Targets(
        old_logprobs=column(tokens["sampling"]),
        gain=weighted.clamp(min=0),
        penalty=weighted.clamp(max=0),
        weights=weights,
        segment=None if segment is None else torch.tensor(segment),
        ref_logprobs=column(tokens["ref"]),
    )


def leaves(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies that gradients are taken by."""
    return column(tokens["policy"]).requires_grad_(), column(tokens["entropy"]).requires_grad_()


def fast_loss(policy: Tensor, entropy: Tensor, targets: Targets, dual_clip: float | None) -> Tensor:
    coefs = {"kl_coef": KL_COEF, "entropy_coef": ENTROPY_COEF}
    return -token_terms(policy, entropy, targets, **CLIPS, dual_clip=dual_clip, **coefs).objective.sum()


def segment_loss(
    policy: Tensor, entropy: Tensor, tokens: Tokens, segment: Sequence[int], dual_clip: float | None
) -> Tensor:
    """The definition with one ratio a segment: scalars one by one, their gradient from autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for number in set(segment):
        members = [t for t, other in enumerate(segment) if other == number]
        rho = torch.exp(sum((policy[t] - tokens["sampling"][t] for t in members), torch.tensor(0.0)) / len(members))
        for t in members:
            a = tokens["advantages"][t]
            value = min(rho * a, min(max(rho.item(), 1 - CLIP_LOW), 1 + CLIP_HIGH) * a)
            if dual_clip is not None and a < 0:
                value = max(value, dual_clip * a)
            d = tokens["ref"][t] - policy[t]
            kl = torch.exp(d) - d - 1
            total = total - tokens["weights"][t] * (value - KL_COEF * kl + ENTROPY_COEF * entropy[t])
    return total


def assert_same_value_and_gradients(loss: Tensor, expected: Tensor, by: Sequence[Tensor]) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for grad, expected_grad in zip(torch.autograd.grad(loss, by), torch.autograd.grad(expected, by), strict=True):
        assert expected_grad.count_nonzero() > 0
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dual_clip", [None, DUAL_CLIP])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_equal_the_formula_token_by_token(seed: int, dual_clip: float | None) -> None:
    tokens = random_tokens(seed)
    ratios = [math.exp(p - s) for p, s in zip(tokens["policy"], tokens["sampling"], strict=True)]
    assert min(ratios) < 1 - CLIP_LOW
    assert max(ratios) > DUAL_CLIP
    expected, expected_grad = slow_loss(**tokens, dual_clip=dual_clip)
    policy, entropy = leaves(tokens)
    loss = fast_loss(policy, entropy, targets_of(tokens), dual_clip)
    grad, entropy_grad = torch.autograd.grad(loss, (policy, entropy))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert grad.tolist() == pytest.approx(expected_grad, rel=1e-12, abs=1e-14)
    assert entropy_grad.tolist() == pytest.approx([-ENTROPY_COEF * w for w in tokens["weights"]], rel=1e-12)


@pytest.mark.parametrize("dual_clip", [None, DUAL_CLIP])
@pytest.mark.parametrize("seed", range(3))
def test_a_ratio_over_segments_equals_its_definition_token_by_token(seed: int, dual_clip: float | None) -> None:
    # numbers are any, in any order, and one segment is a single token
    segment = [*random.Random(seed).choices([0, 3, 5, 6, 9, 11], k=59), 702]
    tokens = tokens_in(segment, seed)
    policy, entropy = leaves(tokens)
    loss = fast_loss(policy, entropy, targets_of(tokens, segment), dual_clip)
    expected = segment_loss(policy, entropy, tokens, segment, dual_clip)
    assert_same_value_and_gradients(loss, expected, (policy, entropy))


def test_a_segment_of_one_token_has_the_token_ratio() -> None:
    tokens = random_tokens(0, n=20)
    policy, entropy = leaves(tokens)
    loss = fast_loss(policy, entropy, targets_of(tokens, range(20)), DUAL_CLIP)
    assert_same_value_and_gradients(loss, fast_loss(policy, entropy, targets_of(tokens), DUAL_CLIP), (policy, entropy))


@pytest.mark.parametrize("prefix_weight", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("ratio", ["token", "turn"])
def test_a_turn_of_several_leaves_equals_its_replicated_rows(ratio: str, prefix_weight: float) -> None:
    """Turns of 1 to 5 leaves: once with S+ and S-, and once as rows of one leaf each, value and gradient."""
    rng = random.Random(7)
    turn = sorted(rng.choices(range(12), k=60))
    advantages = [[rng.gauss(0, 1.5) for _ in range(1 + number % 5)] for number in range(12)]
    assert any(min(of) < 0 < max(of) for of in advantages)
    tokens = tokens_in(turn, seed=3)
    policy, entropy = leaves(tokens)

    of_token = [advantages[number] for number in turn]
    share = [len(of) ** (prefix_weight - 1) for of in of_token]
    both = list(zip(share, of_token, strict=True))
    shared = Targets(
        old_logprobs=column(tokens["sampling"]),
        gain=column([w * sum(max(a, 0.0) for a in of) for w, of in both]),
        penalty=column([w * sum(min(a, 0.0) for a in of) for w, of in both]),
        weights=column([w * len(of) for w, of in both]),
        segment=torch.tensor(turn) if ratio == "turn" else None,
        ref_logprobs=column(tokens["ref"]),
    )

    copies = [(t, leaf) for t, of in enumerate(of_token) for leaf in range(len(of))]
    index = torch.tensor([t for t, _ in copies])
    rows = {name: [tokens[name][t] for t, _ in copies] for name in ("sampling", "ref")}
    rows |= {"advantages": [of_token[t][leaf] for t, leaf in copies], "weights": [share[t] for t, _ in copies]}
    segment = [turn[t] * 5 + leaf if ratio == "turn" else number for number, (t, leaf) in enumerate(copies)]
    expected = segment_loss(policy[index], entropy[index], rows, segment, DUAL_CLIP)
    assert_same_value_and_gradients(fast_loss(policy, entropy, shared, DUAL_CLIP), expected, (policy, entropy))


def test_a_part_of_the_targets_has_their_part_of_the_loss() -> None:
    tokens = random_tokens(1, n=30)
    policy, entropy = leaves(tokens)
    targets = targets_of(tokens, [t // 10 for t in range(30)])
    whole = fast_loss(policy, entropy, targets, None)
    parts = [
        fast_loss(policy[which], entropy[which], targets.part(which), None) for which in (slice(0, 10), slice(10, 30))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=0)


def test_without_a_coefficient_the_entropy_is_not_in_the_graph() -> None:
    policy, entropy = leaves(random_tokens(0, n=4))
    loss = token_terms(policy, entropy, targets_of(random_tokens(0, n=4)), **CLIPS).objective.sum()
    assert torch.autograd.grad(loss, entropy, allow_unused=True) == (None,)


def test_no_targets_have_no_loss() -> None:
    nothing = torch.zeros(0)
    terms = token_terms(nothing, nothing, Targets(nothing, nothing, nothing, nothing, nothing.long()), **CLIPS)
    assert terms.objective.shape == (0,)


def plain_targets(advantages: list[float]) -> Targets:
    """Tokens that were sampled with certainty, of weight 1."""
    parts = torch.tensor(advantages)
    return Targets(torch.zeros_like(parts), parts.clamp(min=0), parts.clamp(max=0), torch.ones_like(parts))


def test_a_token_at_ratio_one_has_the_plain_policy_gradient() -> None:
    policy = torch.zeros(2, requires_grad=True)
    terms = token_terms(policy, torch.zeros(2), plain_targets([2.0, -3.0]), **CLIPS)
    (grad,) = torch.autograd.grad(terms.objective.sum(), policy)
    assert terms.objective.tolist() == [2.0, -3.0]
    assert grad.tolist() == [2.0, -3.0]
    assert terms.kl.tolist() == [0.0, 0.0]


def test_a_token_counts_as_clipped_only_on_the_side_that_its_advantage_stops() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.5, 1.0])
    targets = plain_targets([-1.0, 1.0, 1.0, -1.0, 0.0, 1.0])
    terms = token_terms(ratio.log(), torch.zeros(6), targets, **CLIPS)
    assert terms.clipped_low.tolist() == [True, False, False, False, False, False]
    assert terms.clipped_high.tolist() == [False, False, True, False, False, False]


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
