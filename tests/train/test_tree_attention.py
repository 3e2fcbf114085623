"""The attention of one layer: every plan gives what the mask of all pairs gives, and so does its gradient."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.paths import flex, runs
from treegrpo_cli.train.paths.dense import DensePlan
from treegrpo_cli.train.paths.depth_first import EdgePlan
from treegrpo_cli.train.paths.flex import FlexPlan, block_mask
from treegrpo_cli.train.paths.runs import RunsPlan
from treegrpo_cli.train.tree_attention import TreeUnsupportedError
from treegrpo_cli.train.visibility import pairs_of_blocks, visible
from treegrpo_cli.types import TrainBatch

from tests.chainwise import Rows, random_trees
from tests.steps import make_trees, step_of

WINDOWS = [None, 1, 4, 1000]
HEADS, KEY_HEADS, HEAD_SIZE, SCALE = 4, 2, 8, 0.4


@pytest.fixture(scope="module", params=[0, 1, "cut at branches"])
def batch(request: pytest.FixtureRequest) -> TrainBatch:
    """A whole random forest, or what begins with a path computed again."""
    cut = request.param == "cut at branches"
    rows = Rows.of(random_trees(2 if cut else request.param, 50, num_turns=12), "grpo")
    micros = rows.forest.pack(rows.scores).micro_batches(40 if cut else 10_000)
    return to_batch(max(micros, key=lambda micro: micro.num_context))


def heads(batch: TrainBatch, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values of the batch's tokens."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, num, len(batch.token_ids), HEAD_SIZE, generator=generator, dtype=dtype).requires_grad_()
        for num in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


def paths_of(batch: TrainBatch) -> list[list[int]]:
    """Of each token, the tokens from its root to itself."""
    paths: list[list[int]] = []
    for token, parent in enumerate(batch.parent_token.tolist()):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    return paths


def expected(batch: TrainBatch, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Attention token by token, each over the last `window` tokens of its own path."""
    keys, values = (tensor[0].repeat_interleave(HEADS // KEY_HEADS, dim=0) for tensor in (key, value))
    rows = []
    for token, path in enumerate(paths_of(batch)):
        seen = path if window is None else path[-window:]
        share = torch.softmax(SCALE * torch.einsum("hd,hkd->hk", query[0, :, token], keys[:, seen]), dim=1)
        rows.append(torch.einsum("hk,hkd->hd", share, values[:, seen]))
    return torch.stack(rows)[None]


def gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=generator, dtype=output.dtype))


def assert_as_expected(batch: TrainBatch, inputs: tuple[Tensor, ...], output: Tensor, window: int | None) -> None:
    truth = expected(batch, *inputs, window)
    torch.testing.assert_close(output, truth, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(output, inputs), gradients(truth, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("plan", [RunsPlan, DensePlan])
def test_a_token_attends_to_its_path_and_no_further_than_its_window(
    batch: TrainBatch, plan: Any, window: int | None
) -> None:
    inputs = heads(batch)
    assert_as_expected(batch, inputs, plan(batch).attend(*inputs, SCALE, window, 0), window)


@pytest.mark.parametrize("window", WINDOWS)
def test_edge_by_edge_a_token_attends_to_its_path(batch: TrainBatch, window: int | None) -> None:
    """Edges lend their keys and values to those below; what these leave there is the rest of the gradient."""
    inputs = heads(batch)
    plans: list[EdgePlan] = []
    outputs = []
    for start, end, above in batch.edges:
        plans.append(EdgePlan(plans[above] if above >= 0 else None))
        outputs.append(plans[-1].attend(*(part[:, :, start:end] for part in inputs), SCALE, window, 0))
    whole = torch.cat(outputs, dim=1)
    truth = expected(batch, *inputs, window)
    torch.testing.assert_close(whole, truth, rtol=0, atol=1e-12)
    theirs = gradients(truth, inputs)
    generator = torch.Generator().manual_seed(1)
    whole.backward(torch.randn(whole.shape, generator=generator, dtype=whole.dtype))
    for plan, (start, end, _) in zip(plans, batch.edges, strict=True):
        for place, lent in enumerate(plan.lent[0], start=1):
            if lent.grad is not None:
                inputs[place].grad[:, :, start:end] += lent.grad
    for tensor, grad in zip(inputs, theirs, strict=True):
        torch.testing.assert_close(tensor.grad, grad, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", WINDOWS)
def test_flex_attention_sees_what_the_mask_of_all_pairs_shows(batch: TrainBatch, window: int | None) -> None:
    query, key, value = (tensor.detach() for tensor in heads(batch, torch.float32))
    output = FlexPlan(batch).attend(query, key, value, SCALE, window, 0)
    truth = expected(batch, query, key, value, window)
    torch.testing.assert_close(output, truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 5, 16, 128])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_blocks_of_flex_attention_are_those_of_the_mask_of_all_pairs(
    batch: TrainBatch, window: int | None, size: int
) -> None:
    length = len(batch.token_ids)
    expected = create_block_mask(visible(batch, window), None, None, length, length, "cpu", BLOCK_SIZE=size)
    found = block_mask(batch, window, size)
    assert (found.shape, found.BLOCK_SIZE) == (expected.shape, expected.BLOCK_SIZE)
    assert torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv", "full_kv", "q", "full_q"):
        ours, theirs = (getattr(mask, f"{name}_num_blocks") for mask in (found, expected))
        assert ours.dtype == theirs.dtype == torch.int32
        assert torch.equal(ours, theirs), name
        ours, theirs = (getattr(mask, f"{name}_indices") for mask in (found, expected))
        assert ours.dtype == theirs.dtype == torch.int32
        assert torch.equal(ours, theirs), name


def test_some_blocks_are_seen_in_full_some_in_part_and_some_not(batch: TrainBatch) -> None:
    """Else equality would say little."""
    counts = pairs_of_blocks(batch, 10, 3)
    assert (counts == 9).any()
    assert ((counts > 0) & (counts < 9)).any()
    assert (np.tril(counts == 0, -1)).any()


class Largest(TorchDispatchMode):
    """The most numbers that one result of torch has."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        self.numel = max(self.numel, result.numel() if isinstance(result, Tensor) else 0)
        return result


def test_a_mask_of_blocks_is_made_without_the_pairs() -> None:
    forest, scores = step_of(make_trees(0, turn_tokens=60))
    [micro] = forest.pack(scores).micro_batches(100_000)
    batch, length = to_batch(micro), len(micro.token_ids)
    assert length > 1000
    with Largest() as of_pairs:
        create_block_mask(visible(batch, 100), None, None, length, length, "cpu")
    with Largest() as of_blocks:
        block_mask(batch, 100)
    assert of_pairs.numel >= length**2
    assert of_blocks.numel <= length


def compile_flex(monkeypatch: pytest.MonkeyPatch, **options: Any) -> CompileCounter:
    """Let FlexAttention be compiled as on CUDA, up to the kernel: each compilation is counted and runs as it is."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # as vLLM's settings for a CPU leave it
    counter = CompileCounter()
    function = torch.compile(flex.plain_flex_attention(), backend=counter, **flex.COMPILE_OPTIONS | options)
    monkeypatch.setattr(flex, "plain_flex_attention", lambda: function)
    return counter


def test_flex_attention_compiles_for_a_window_but_for_no_other_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_flex(monkeypatch)
    for seed in range(5):
        rows = Rows.of(random_trees(seed, 50, num_turns=8 + seed), "grpo")
        [whole] = rows.forest.pack(rows.scores).micro_batches(10_000)
        batch = to_batch(whole)
        query, key, value = (tensor.detach() for tensor in heads(batch, torch.float32))
        plan = FlexPlan(batch)
        for window in (None, 4, 7):
            output = plan.attend(query, key, value, SCALE, window, 0)
            truth = expected(batch, query, key, value, window)
            torch.testing.assert_close(output, truth, rtol=0, atol=1e-5)
        assert 1 <= compiled.frame_count <= 3


def test_flex_attention_that_asks_for_too_many_compilations_is_no_slow_attention(
    batch: TrainBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch would compute all pairs from there on, and say so in a log."""
    compile_flex(monkeypatch, recompile_limit=1)
    query, key, value = (tensor.detach() for tensor in heads(batch, torch.float32))
    FlexPlan(batch).attend(query, key, value, SCALE, None, 0)
    with pytest.raises(TreeUnsupportedError, match="was compiled 64 times and asks for more"):
        FlexPlan(batch).attend(query, key, value, SCALE, 4, 0)


def test_flex_attention_is_refused_where_it_has_no_gradient(batch: TrainBatch) -> None:
    with pytest.raises(TreeUnsupportedError, match="no gradient on cpu"):
        FlexPlan(batch).attend(*heads(batch), SCALE, None, 0)


def slow_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What torch documents of its kernel, one query at a time.

    Sequence s has queries cu_seq_q[s] .. cu_seq_q[s + 1] and keys likewise. With k keys and q queries, query i sees
    key j where i + k - q - left <= j <= i + k - q + right: aligned at the lower right; -1 is no bound.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert int(cu_seq_q[-1]) == len(query)
    assert int(cu_seq_k[-1]) == len(key) == len(value)
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    assert scale is not None
    group = query.shape[1] // key.shape[1]
    assert enable_gqa or group == 1
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    left, right = window_size
    rows = []
    for s in range(len(cu_seq_q) - 1):
        queries, keys = (range(int(cu[s]), int(cu[s + 1])) for cu in (cu_seq_q, cu_seq_k))
        for i, at in enumerate(queries):
            aligned = i + len(keys) - len(queries)
            first = 0 if left < 0 else max(0, aligned - left)
            last = len(keys) if right < 0 else min(len(keys), aligned + right + 1)
            seen = slice(keys[first], keys[last - 1] + 1)
            share = torch.softmax(scale * torch.einsum("hd,khd->hk", query[at], key[seen]), dim=1)
            rows.append(torch.einsum("hk,khd->hd", share, value[seen]))
    return torch.stack(rows)


@pytest.mark.parametrize("window", WINDOWS)
def test_on_cuda_runs_are_one_call_of_variable_lengths(
    batch: TrainBatch, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "varlen_attention", slow_varlen)
    monkeypatch.setattr(runs, "VARLEN_DTYPES", (torch.float64,))
    inputs = heads(batch)
    assert_as_expected(batch, inputs, RunsPlan(batch)._varlen(*inputs, SCALE, window), window)


def test_the_slow_kernel_has_the_parameters_of_torchs() -> None:
    slow, fast = (inspect.signature(function).parameters for function in (slow_varlen, varlen_attn))
    for name, parameter in slow.items():
        assert fast[name].kind == parameter.kind, name
        assert fast[name].default == parameter.default, name
    positional = [name for name, parameter in fast.items() if parameter.kind != inspect.Parameter.KEYWORD_ONLY]
    assert list(slow)[: len(positional)] == positional


def test_the_kernel_of_variable_lengths_is_refused_in_float32(batch: TrainBatch) -> None:
    with pytest.raises(TreeUnsupportedError, match=r"in bfloat16, not in torch\.float32"):
        RunsPlan(batch)._varlen(*heads(batch, torch.float32), SCALE, None)
