"""Log-probabilities, the loss and its gradient: `head.backward` chunk by chunk, and all logits at once with autograd.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_head.py

Both compute the clipped loss of every predictor's target and its gradient at the hidden states and at the weight,
compared first; the chunked one returns the entropies too. A peak is the greatest number of bytes that were alive
beyond those before the call, without the buffers of the weight gradient's own size. Times are medians, taken in turns.
torch's own chunked `linear_cross_entropy` stands beside them as a measure: it computes the sum of -log p, which is
not this loss, from the same matrix products.
"""

import argparse
import platform
import time
from collections.abc import Callable
from itertools import accumulate
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from treegrpo_cli.train.head import Head, HeadGradients, backward
from treegrpo_cli.train.loss import Targets, token_terms

SHAPES = [(1024, 151_936, 896), (256, 151_936, 896), (1024, 32_000, 896), (1024, 32_000, 384)]
"""Predictors, vocabulary, hidden size; the first are those of Qwen2.5-0.5B."""
LIBRARY_CHUNK = 256
"""Predictors a chunk of `linear_cross_entropy`; those that it chooses itself are a few, and several times slower."""
Method = Callable[[], tuple[Tensor, Tensor]]


class Problem:
    """Random hidden states, weight and targets, and the methods, each of which returns both gradients."""

    def __init__(self, num_predictors: int, num_tokens: int, size: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.weight = torch.randn(num_tokens, size, generator=draw).mul_(size**-0.5)
        self.hidden = torch.randn(num_predictors, size, generator=draw)
        self.row = torch.arange(num_predictors)
        self.ids = torch.randint(num_tokens, (num_predictors,), generator=draw)
        advantages = torch.randn(num_predictors, generator=draw)
        self.targets = Targets(
            -torch.full((num_predictors,), float(num_tokens)).log() - 0.5,
            advantages.clamp(min=0),
            advantages.clamp(max=0),
            torch.ones(num_predictors),
        )

    def objective(self, logprobs: Tensor, entropy: Tensor, which: slice) -> Tensor:
        terms = token_terms(logprobs, entropy, self.targets.part(which), clip_low=0.2, clip_high=0.2)
        return -terms.objective.sum() / len(self.ids)

    def chunked(self) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(self.weight)
        grads = HeadGradients(total)
        result = backward(Head(self.weight), self.hidden, self.row, self.ids, self.objective, grads, is_local=True)
        return result.hidden_grad, total

    def full(self) -> tuple[Tensor, Tensor]:
        hidden, weight = self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()
        log_p = torch.log_softmax(hidden @ weight.t(), dim=-1)
        logprobs = log_p.gather(1, self.ids[:, None]).squeeze(1)
        del log_p
        loss = self.objective(logprobs, torch.zeros_like(logprobs), slice(None))
        return torch.autograd.grad(loss, (hidden, weight))

    def cross_entropy(self) -> tuple[Tensor, Tensor]:
        hidden, weight = self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=LIBRARY_CHUNK)
        loss = functional.linear_cross_entropy(hidden, weight, self.ids, reduction="sum", options=options)
        return torch.autograd.grad(loss, (hidden, weight))


def peak_bytes(method: Method, weight_bytes: int) -> int:
    """Greatest number of bytes alive during the call, from torch's records, without buffers of the weight's size."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        method()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(size for size in sizes if abs(size) != weight_bytes))


def seconds(method: Method) -> float:
    start = time.perf_counter()
    method()
    return time.perf_counter() - start


def measure(shape: tuple[int, int, int], repeats: int) -> None:
    problem = Problem(*shape)
    for ours, theirs in zip(problem.chunked(), problem.full(), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    methods: dict[str, Method] = {"all logits at once": problem.full, "head.backward": problem.chunked}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        methods["torch linear_cross_entropy"] = problem.cross_entropy
    weight_bytes = problem.weight.numel() * problem.weight.element_size()
    peaks = {name: peak_bytes(method, weight_bytes) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            times[name].append(seconds(method))
    full = "all logits at once"
    for name in methods:
        peak, took = peaks[name], median(times[name])
        print(
            f"| {shape[0]:,} × {shape[1]:,} × {shape[2]:,} | {name} | {peak / 1e6:,.0f} | {peak / peaks[full]:.3f} "
            f"| {took:.3f} | {took / median(times[full]):.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"float32, {platform.machine()}, one thread, torch {torch.__version__}, median of {arguments.repeats}\n")
    print("| predictors × vocabulary × hidden | method | peak, MB | of all at once | s | of all at once |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES[: arguments.shapes]:
        measure(shape, arguments.repeats)


if __name__ == "__main__":
    main()
