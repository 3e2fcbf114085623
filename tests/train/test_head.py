"""The head against autograd through all logits at once: values, and the gradients of hidden states, weight and bias."""

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from treegrpo_cli.train import head as head_module
from treegrpo_cli.train import products as products_module
from treegrpo_cli.train.head import Head, HeadGradients, HeadResult, Objective, backward, linearise, log_probs

NUM_TOKENS, NUM_PREDICTORS, NUM_TARGETS, HIDDEN = 31, 13, 40, 7
KINDS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 1.5},
    "softcap and temperature": {"softcap": 1.5, "temperature": 1.4},
}
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def tiny_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three predictors and blocks of two, so that many and uneven ones occur."""
    if "real_sizes" not in request.fixturenames:
        set_sizes(monkeypatch, 3 * NUM_TOKENS + 1, 2 * NUM_TOKENS)


@pytest.fixture
def real_sizes() -> None:
    """Keeps the sizes as they are."""


def set_sizes(monkeypatch: pytest.MonkeyPatch, chunk: int, block: int) -> None:
    monkeypatch.setitem(products_module.SIZES, "cpu", products_module.Sizes(chunk, block))


@dataclass(frozen=True)
class Case:
    """A head, hidden states of predictors, and targets: one a predictor, or several where a tree branches."""

    head: Head
    hidden: Tensor
    row: Tensor
    ids: Tensor


def random_case(seed: int, dtype: torch.dtype = torch.float64, has_bias: bool = False, **kind: float) -> Case:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    extra = torch.randint(NUM_PREDICTORS, (NUM_TARGETS - NUM_PREDICTORS,), generator=draw)
    row = torch.cat([torch.arange(NUM_PREDICTORS), extra]).sort().values
    ids = torch.randint(NUM_TOKENS, (NUM_TARGETS,), generator=draw)
    ids[1:][row[1:] == row[:-1]] = ids[:-1][row[1:] == row[:-1]]  # two turns may begin with the same token
    head = Head(normal(NUM_TOKENS, HIDDEN), normal(NUM_TOKENS) if has_bias else None, **kind)
    return Case(head, normal(NUM_PREDICTORS, HIDDEN), row, ids)


def random_objective(dtype: torch.dtype, reads_entropy: bool = True) -> Objective:
    """A sum over targets, of either sign and curved, so that every slope is another."""
    draw = torch.Generator().manual_seed(99)
    a, b = torch.randn(2, NUM_TARGETS, generator=draw, dtype=torch.float64).to(dtype)

    def objective(logprobs: Tensor, entropy: Tensor, which: slice) -> Tensor:
        assert logprobs.shape == entropy.shape == a[which].shape
        value = (a[which] * logprobs.exp()).sum()
        return value + (b[which] * entropy**2).sum() if reads_entropy else value

    return objective


def plain_log_probs(head: Head, hidden: Tensor) -> Tensor:
    """log-probabilities of the whole vocabulary, as the definition has them."""
    logits = hidden @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits / head.temperature, dim=-1)


def plain_backward(case: Case, objective: Objective) -> tuple[HeadResult, HeadGradients]:
    """All logits at once, and autograd."""
    head, hidden = case.head, case.hidden.clone().requires_grad_()
    weight = head.weight.clone().requires_grad_()
    bias = None if head.bias is None else head.bias.clone().requires_grad_()
    log_p = plain_log_probs(replace(head, weight=weight, bias=bias), hidden)
    entropy = -torch.where(log_p.isinf(), 0, log_p.exp() * log_p.masked_fill(log_p.isinf(), 0)).sum(dim=-1)
    logprobs, entropies = log_p[case.row, case.ids], entropy[case.row]
    loss = objective(logprobs, entropies, slice(0, len(case.ids)))
    loss.backward()
    assert hidden.grad is not None
    return (
        HeadResult(loss.detach(), logprobs.detach(), entropies.detach(), hidden.grad),
        HeadGradients(weight.grad, None if bias is None else bias.grad),
    )


def zero_gradients(head: Head) -> HeadGradients:
    return HeadGradients(torch.zeros_like(head.weight), None if head.bias is None else torch.zeros_like(head.bias))


def assert_close(found: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    """The norm of the difference, against the norm."""
    assert found is not None
    assert expected is not None
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert expected.norm() > 0
    assert (found - expected).norm() <= tolerance * expected.norm()


def assert_same(
    found: tuple[HeadResult, HeadGradients], expected: tuple[HeadResult, HeadGradients], tolerance: float
) -> None:
    for name in ("loss", "logprobs", "entropy", "hidden_grad"):
        assert_close(getattr(found[0], name), getattr(expected[0], name), tolerance)
    assert_close(found[1].weight, expected[1].weight, tolerance)
    if expected[1].bias is not None:
        assert_close(found[1].bias, expected[1].bias, tolerance)


@pytest.mark.parametrize("is_local", [True, False], ids=["one pass", "two passes"])
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_equal_those_of_all_logits_at_once(
    kind: str, has_bias: bool, dtype: torch.dtype, is_local: bool
) -> None:
    case, objective = random_case(0, dtype, has_bias, **KINDS[kind]), random_objective(dtype)
    grads = zero_gradients(case.head)
    result = backward(case.head, case.hidden, case.row, case.ids, objective, grads, is_local=is_local)
    assert_same((result, grads), plain_backward(case, objective), EXACT[dtype])


@pytest.mark.parametrize("seed", range(20))
def test_any_targets_of_any_predictors_are_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(seed)
    num_predictors, num_targets, chunk, block = (1 + int(torch.randint(9, (), generator=draw)) for _ in range(4))
    set_sizes(monkeypatch, chunk * NUM_TOKENS, block * NUM_TOKENS)
    case, objective = random_case(seed), random_objective(torch.float64)
    row = torch.randint(num_predictors, (num_targets,), generator=draw).sort().values  # some predictors have none
    case = replace(case, hidden=case.hidden[:num_predictors], row=row, ids=case.ids[:num_targets])
    grads = zero_gradients(case.head)
    result = backward(case.head, case.hidden, case.row, case.ids, objective, grads, is_local=True)
    assert_same((result, grads), plain_backward(case, objective), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_without_a_gradient_are_the_same(kind: str) -> None:
    case = random_case(1, has_bias=True, **KINDS[kind])
    logprobs, entropy = log_probs(case.head, case.hidden.requires_grad_(), case.row, case.ids)
    log_p = plain_log_probs(case.head, case.hidden.detach())
    assert_close(logprobs, log_p[case.row, case.ids], 1e-12)
    assert_close(entropy, -(log_p.exp() * log_p).sum(dim=-1), 1e-12)
    assert not logprobs.requires_grad
    assert not entropy.requires_grad


def test_an_objective_over_many_targets_sees_them_all_at_once() -> None:
    """A product of means is no sum over slices: only two passes can compute it."""
    case = random_case(2)
    seen = []

    def objective(logprobs: Tensor, entropy: Tensor, which: slice) -> Tensor:
        seen.append(which)
        return logprobs.mean() * logprobs.exp().mean() - entropy.mean() ** 2

    expected = plain_backward(case, objective)
    seen.clear()
    grads = zero_gradients(case.head)
    result = backward(case.head, case.hidden, case.row, case.ids, objective, grads, is_local=False)
    assert seen == [slice(0, NUM_TARGETS)]
    assert_same((result, grads), expected, 1e-12)


def test_an_objective_that_reads_one_of_the_two_has_its_gradient() -> None:
    case = random_case(3)
    for objective in (
        random_objective(torch.float64, reads_entropy=False),
        lambda logprobs, entropy, which: (entropy**2).sum(),
    ):
        grads = zero_gradients(case.head)
        result = backward(case.head, case.hidden, case.row, case.ids, objective, grads, is_local=True)
        assert_same((result, grads), plain_backward(case, objective), 1e-12)


def test_a_linearised_objective_has_the_slope_of_the_objective() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    entropy = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    loss, linear = linearise(lambda p, h, _: (p.sum() ** 2) + (h**2).sum(), logprobs, entropy)
    assert loss.item() == 36 + 5.25
    moved = linear(logprobs[1:] + 1, entropy[1:], slice(1, 3)) - linear(logprobs[1:], entropy[1:], slice(1, 3))
    assert moved.item() == pytest.approx(2 * 2 * -6)
    moved = linear(logprobs[1:], entropy[1:] + 1, slice(1, 3)) - linear(logprobs[1:], entropy[1:], slice(1, 3))
    assert moved.item() == pytest.approx(2 * 1.0 + 2 * 2.0)


def test_gradients_are_added_to_what_is_there() -> None:
    case, objective = random_case(4, has_bias=True), random_objective(torch.float64)
    _, expected = plain_backward(case, objective)
    grads = HeadGradients(torch.ones_like(case.head.weight), torch.ones(NUM_TOKENS, dtype=torch.float64))
    backward(case.head, case.hidden, case.row, case.ids, objective, grads, is_local=True)
    assert grads.weight is not None
    assert grads.bias is not None
    assert_close(grads.weight - 1, expected.weight, 1e-12)
    assert_close(grads.bias - 1, expected.bias, 1e-12)


def test_a_frozen_head_gives_the_hidden_states_their_gradient() -> None:
    case, objective = random_case(5, has_bias=True), random_objective(torch.float64)
    before = case.head.weight.clone()
    result = backward(case.head, case.hidden, case.row, case.ids, objective, HeadGradients(), is_local=True)
    assert_close(result.hidden_grad, plain_backward(case, objective)[0].hidden_grad, 1e-12)
    assert torch.equal(case.head.weight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind: str) -> None:
    case, objective = random_case(6, has_bias=True, **KINDS[kind]), random_objective(torch.float64)
    grads = zero_gradients(case.head)
    result = backward(case.head, case.hidden, case.row, case.ids, objective, grads, is_local=True)

    def loss(head: Head, hidden: Tensor) -> float:
        logprobs, entropy = log_probs(head, hidden, case.row, case.ids)
        return objective(logprobs, entropy[case.row], slice(0, NUM_TARGETS)).item()

    assert grads.weight is not None
    assert case.head.bias is not None
    for place, slope in (((4, 2), result.hidden_grad[4, 2]), ((12, 6), result.hidden_grad[12, 6])):
        step = torch.zeros_like(case.hidden)
        step[place] = 1e-5
        moved = loss(case.head, case.hidden + step) - loss(case.head, case.hidden - step)
        assert moved / 2e-5 == pytest.approx(slope.item(), rel=1e-6)
    for place, slope in (((0, 0), grads.weight[0, 0]), ((30, 6), grads.weight[30, 6])):
        step = torch.zeros_like(case.head.weight)
        step[place] = 1e-5
        up, down = (replace(case.head, weight=case.head.weight + sign * step) for sign in (1, -1))
        assert (loss(up, case.hidden) - loss(down, case.hidden)) / 2e-5 == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("is_local", [True, False], ids=["one pass", "two passes"])
def test_a_token_that_is_masked_out_leaves_values_and_gradients_finite(is_local: bool) -> None:
    case, objective = random_case(7, has_bias=True), random_objective(torch.float64)
    assert case.head.bias is not None
    case.head.bias[30] = -math.inf
    case = replace(case, ids=case.ids.clamp(max=29))
    grads = zero_gradients(case.head)
    result = backward(case.head, case.hidden, case.row, case.ids, objective, grads, is_local=is_local)
    without = Case(
        Head(case.head.weight[:30], case.head.bias[:30]), case.hidden, case.row, case.ids
    )  # the same as a vocabulary without it
    expected, expected_grads = plain_backward(without, objective)
    assert grads.weight is not None
    assert grads.bias is not None
    assert not grads.weight[30].any()
    assert not grads.bias[30].any()
    assert_same((result, HeadGradients(grads.weight[:30], grads.bias[:30])), (expected, expected_grads), 1e-12)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    case, grads = random_case(8), zero_gradients(random_case(8).head)
    nothing, objective = torch.zeros(0, dtype=torch.int64), random_objective(torch.float64)
    for is_local in (True, False):
        result = backward(case.head, case.hidden[:0], nothing, nothing, objective, grads, is_local=is_local)
        assert result.loss.item() == 0
        assert result.hidden_grad.shape == (0, HIDDEN)
        assert result.logprobs.shape == result.entropy.shape == (0,)
    assert grads.weight is not None
    assert not grads.weight.any()


def in_bfloat16(case: Case) -> tuple[Case, Case]:
    """The case with its numbers rounded to bfloat16: as they are, and in float32."""
    hidden = case.hidden.bfloat16()
    weight, bias = (None if part is None else part.bfloat16().float() for part in (case.head.weight, case.head.bias))
    assert weight is not None
    rounded = Case(Head(weight, bias, temperature=case.head.temperature), hidden, case.row, case.ids)
    return rounded, replace(rounded, hidden=hidden.float())


@pytest.fixture(params=["widened by pieces", "the kernel for CUDA"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to multiply bfloat16; the kernel's place is taken by what torch documents of it."""
    is_kernel = bool(request.param == "the kernel for CUDA")
    if is_kernel:

        def slow(one: Tensor, other: Tensor) -> Tensor:
            assert one.dtype == other.dtype == torch.bfloat16
            return one.float() @ other.float()

        monkeypatch.setattr(products_module, "_has_wide_products", lambda _: True)
        monkeypatch.setattr(products_module, "wide_product", slow)
    return is_kernel


@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_bfloat16_are_summed_and_kept_in_float32(products: bool, has_bias: bool) -> None:
    """As near to the truth as float32 is; a gradient that is rounded on its way is that near to it."""
    rounded, truth = in_bfloat16(random_case(9, torch.float32, has_bias, temperature=0.9))
    objective = random_objective(torch.float32)
    expected, expected_grads = plain_backward(truth, objective)
    grads = zero_gradients(truth.head)
    result = backward(rounded.head, rounded.hidden, rounded.row, rounded.ids, objective, grads, is_local=True)
    assert (result.loss.dtype, result.logprobs.dtype, result.entropy.dtype) == (torch.float32,) * 3
    assert result.hidden_grad.dtype == torch.bfloat16
    assert_close(result.logprobs, expected.logprobs, 1e-6)
    assert_close(result.entropy, expected.entropy, 1e-6)
    assert_close(result.hidden_grad.float(), expected.hidden_grad, 2**-8)
    assert_close(grads.weight, expected_grads.weight, 2**-8 if products else 1e-6)
    if has_bias:
        assert_close(grads.bias, expected_grads.bias, 1e-6)
    found, entropy = log_probs(rounded.head, rounded.hidden, rounded.row, rounded.ids)
    assert torch.equal(found, result.logprobs)
    assert torch.equal(entropy[rounded.row], result.entropy)


@pytest.mark.usefixtures("products")
def test_logits_that_are_not_rounded_bring_log_probabilities_a_hundred_times_nearer_to_the_truth() -> None:
    """Logits as large as language models have them; the truth is of the same bfloat16 numbers, in float64."""
    rounded, truth = in_bfloat16(random_case(11, torch.float32))
    weight = 8 * rounded.head.weight
    log_p = plain_log_probs(Head(weight.double()), truth.hidden.double())[truth.row, truth.ids]
    of_logits = (rounded.hidden @ weight.bfloat16().t()).float()  # as a linear layer in bfloat16 gives them
    before = torch.log_softmax(of_logits, dim=-1)[truth.row, truth.ids]
    ours, _ = log_probs(Head(weight), rounded.hidden, rounded.row, rounded.ids)
    assert (before - log_p).abs().max() > 0.05
    assert (ours - log_p).abs().max() < (before - log_p).abs().max() / 100


def test_torch_has_the_kernel_for_cuda() -> None:
    one, other = (torch.empty(3, 3, dtype=torch.bfloat16, device="meta") for _ in range(2))
    assert products_module.wide_product(one, other.t()).dtype == torch.float32
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::mm.dtype", "CUDA")


def count_operations(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many a batch of 2,048 predictors and the vocabulary of Qwen takes on CUDA, in name only.

    Whatever would wait for the device raises. The objective's slopes are left out: autograd wants a device that is.
    """

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += function.namespace == "aten" and not function.is_view
            return function(*args, **kwargs or {})

    monkeypatch.setattr(head_module, "slopes", lambda _, logprobs, *rest: (logprobs.sum(), logprobs, None))
    row = np.arange(2_048)
    with FakeTensorMode(), torch.device("cuda"):
        hidden = torch.empty(2_048, 896, dtype=torch.bfloat16)
        head, grads = Head(torch.empty(151_936, 896)), HeadGradients(torch.empty(151_936, 896))
        targets = torch.empty(2, 2_048, dtype=torch.int64).unbind()
        with Counter() as counter:
            backward(head, hidden, *targets, lambda p, *_: p.sum(), grads, is_local=True, host_row=row)
    return counter.count


@pytest.mark.usefixtures("real_sizes")
def test_a_gpu_is_given_few_large_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a launch; in the sizes of a CPU's cache they are many more, most of them of 13 rows."""
    assert count_operations(monkeypatch) < 250
    monkeypatch.setitem(products_module.SIZES, "cuda", products_module.SIZES["cpu"])
    assert count_operations(monkeypatch) > 1_500


@pytest.mark.usefixtures("real_sizes")
def test_pieces_of_a_weight_cover_it_and_are_aligned_for_tensor_cores() -> None:
    weight = torch.empty(151_937, 896, device="meta")
    pieces = [range(151_937)[piece] for piece in products_module._pieces(weight)]
    assert [token for piece in pieces for token in piece] == list(range(151_937))
    assert len(pieces) > 3
    assert all(piece.start % 64 == 0 for piece in pieces)


def test_sizes_go_by_the_kind_of_device() -> None:
    assert products_module.sizes(torch.device("cuda:1")) is products_module.SIZES["cuda"]
    assert products_module.sizes(torch.device("cpu")) is products_module.SIZES["cpu"]
    assert products_module.sizes(torch.device("meta")) is products_module.SIZES["cuda"], (
        "what is not known counts as a GPU"
    )


def test_many_small_bfloat16_gradients_are_not_lost_in_their_sum() -> None:
    """1,000 chunks that each add about 2^-9 of what is there: a sum in bfloat16 would stay where it is."""
    head = Head(torch.zeros(NUM_TOKENS, HIDDEN))
    hidden = torch.ones(3000, HIDDEN, dtype=torch.bfloat16)
    row, ids = torch.arange(3000), torch.zeros(3000, dtype=torch.int64)
    grads = zero_gradients(head)
    backward(head, hidden, row, ids, lambda logprobs, *_: logprobs.sum() / 3000, grads, is_local=True)
    assert grads.weight is not None
    assert grads.weight[0].tolist() == pytest.approx([1 - 1 / NUM_TOKENS] * HIDDEN, rel=2**-7)
    assert grads.weight[1].tolist() == pytest.approx([-1 / NUM_TOKENS] * HIDDEN, rel=2**-7)


def test_under_autocast_products_are_in_its_dtype_and_sums_are_not() -> None:
    rounded, truth = in_bfloat16(random_case(10, torch.float32))
    objective = random_objective(torch.float32)
    of_bfloat16, of_autocast = zero_gradients(rounded.head), zero_gradients(rounded.head)
    expected = backward(rounded.head, rounded.hidden, rounded.row, rounded.ids, objective, of_bfloat16, is_local=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = backward(truth.head, truth.hidden, truth.row, truth.ids, objective, of_autocast, is_local=True)
    assert torch.equal(result.logprobs, expected.logprobs)
    assert torch.equal(result.entropy, expected.entropy)
    assert result.hidden_grad.dtype == torch.float32
    assert torch.equal(result.hidden_grad.bfloat16(), expected.hidden_grad)
    assert of_autocast.weight is not None
    assert of_bfloat16.weight is not None
    assert torch.equal(of_autocast.weight, of_bfloat16.weight)


def test_no_more_logits_are_alive_than_a_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 predictors: all that is alive at any time has the size of the logits of ten, and half as much."""
    num_predictors, num_tokens = 100, 4096
    set_sizes(monkeypatch, 10 * num_tokens, num_tokens)
    head = Head(torch.zeros(num_tokens, 2))
    hidden, row, grads = torch.zeros(num_predictors, 2), torch.arange(num_predictors), zero_gradients(head)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        backward(head, hidden, row, row, lambda p, h, _: (p + h).sum(), grads, is_local=True)
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    chunk_bytes = 10 * num_tokens * 4
    assert chunk_bytes <= max(alive) <= 1.5 * chunk_bytes
