"""One gradient of a forest: every token once, against looping over chains and against padded chains.

    python tests/benchmarks/bench_tree_training.py                       # this machine's table
    python tests/benchmarks/bench_tree_training.py --device cuda --preset qwen2.5-0.5b

All methods compute the same loss and gradient (checked first) of a random model, in turns, in one process. Bounds
are what counting predicts: `tokens` = chain tokens / unique tokens, `FLOPs` = floating point operations of chains
without padding / those of the forest, head included. A speed-up is over the better of the two chain methods, the
median of paired rounds; `of bound` is the fast path's speed-up over the FLOP bound. Peak memory is the highest
number of bytes that a method holds at once beyond weights and gradients, from the record of every allocation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from treegrpo_cli._core import Forest, Layout
from treegrpo_cli.config import Config
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.counts import ModelShape, Step, forward_tokens
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.planner import choose
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.types import NodeStatus, TrainBatch

PRESETS = {
    "small": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
WHOLE = 2**40
"""A budget that never cuts."""


class Grower:
    """Grows trees of turns of `turn` tokens, two thirds of them sampled, below a prompt."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        self.forest, self.draw, self.vocabulary = Forest(), np.random.default_rng(seed), vocabulary
        self.prompts = 0
        self.depth: dict[int, int] = {}

    def tokens(self, count: int) -> np.ndarray:
        return self.draw.integers(0, self.vocabulary, count).astype(np.uint32)

    def prompt(self, count: int, trees: int = 1) -> list[int]:
        tokens = self.tokens(count)
        roots = [self.forest.add_tree(self.prompts, tokens) for _ in range(trees)]
        self.prompts += 1
        self.depth |= dict.fromkeys(roots, 0)
        return roots

    def turn(self, parent: int, count: int, *, last: bool) -> int:
        sampled = np.arange(count) < count * 2 // 3
        logprobs = np.where(sampled, -self.draw.exponential(2.0, count), 0).astype(np.float32)
        status = NodeStatus.DONE if last else NodeStatus.OPEN
        node = self.forest.add_node(parent, self.tokens(count), sampled, logprobs, status, 0)
        self.depth[node] = self.depth[parent] + 1
        if last:
            self.forest.set_reward(node, float(self.draw.integers(0, 2)))
        return node

    def chain(self, node: int, turns: int, count: int) -> list[int]:
        """Continue a node to depth `turns`; return the nodes that may be expanded."""
        inner = []
        while self.depth[node] < turns:
            node = self.turn(node, count, last=self.depth[node] + 1 == turns)
            inner.append(node)
        return inner[:-1]


def paper(trees: int, expansions: int, rounds: int, turns: int, turn: int, prompt: int) -> Callable[[Grower], None]:
    """M trees, L rounds of N expansions of a node drawn from root and inner turns, all in `turns` turns."""

    def grow(grower: Grower) -> None:
        for root in grower.prompt(prompt, trees):
            nodes = [root, *grower.chain(root, turns, turn)]
            for _ in range(rounds):
                chosen = grower.draw.choice(nodes, expansions)
                for node in chosen.tolist():
                    nodes += grower.chain(node, turns, turn)

    return grow


def fan(sharing: float, length: int, leaves: int = 8) -> Callable[[Grower], None]:
    """Leaves that have one prefix in common, `sharing` of their path."""

    def grow(grower: Grower) -> None:
        [root] = grower.prompt(length // 10)
        trunk = grower.turn(root, round(length * sharing) - length // 10, last=False)
        for _ in range(leaves):
            grower.turn(trunk, round(length * (1 - sharing)), last=True)

    return grow


def caterpillar(turns: int, turn: int) -> Callable[[Grower], None]:
    """A spine with one more leaf at each of its turns."""

    def grow(grower: Grower) -> None:
        [spine] = grower.prompt(turn)
        for number in range(turns):
            grower.turn(spine, turn, last=True)
            spine = grower.turn(spine, turn, last=number + 1 == turns)

    return grow


def binary(depth: int, turn: int) -> Callable[[Grower], None]:
    """Two continuations of every turn."""

    def grow(grower: Grower) -> None:
        nodes = grower.prompt(turn)
        for level in range(depth):
            nodes = [grower.turn(node, turn, last=level + 1 == depth) for node in nodes for _ in range(2)]

    return grow


def separate(chains: int, turns: int, turn: int, spread: float) -> Callable[[Grower], None]:
    """Chains of prompts of their own, whose turns differ in length by `spread` of the mean."""

    def grow(grower: Grower) -> None:
        for number in range(chains):
            [root] = grower.prompt(turn)
            grower.chain(root, turns, round(turn * (1 + spread * (number / (chains - 1) - 0.5))))

    return grow


SHAPES: dict[str, Callable[[Grower], None]] = {
    "M2 N2 L1, 4 turns": paper(2, 2, 1, 4, 150, 200),
    "M2 N2 L1, 10 turns": paper(2, 2, 1, 10, 100, 200),
    "M1 N2 L1, 4 turns": paper(1, 2, 1, 4, 150, 200),
    "M1 N4 L2, 4 turns": paper(1, 4, 2, 4, 150, 200),
    "8 leaves, 50% shared": fan(0.5, 1000),
    "8 leaves, 75% shared": fan(0.75, 1000),
    "8 leaves, 90% shared": fan(0.9, 1000),
    "caterpillar, 8 turns": caterpillar(8, 120),
    "binary tree, 8 leaves": binary(3, 200),
    "nothing shared, unequal": separate(8, 4, 150, spread=0.5),
    "nothing shared, equal": separate(8, 4, 150, spread=0.0),
}


@dataclass
class Method:
    """A path and the micro-batches that it computes."""

    path: str
    batches: list[TrainBatch]


def objective_of(batch: TrainBatch, z: float) -> Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]:
    """Policy gradient at ratio 1 with an advantage of 1 everywhere, so that chains of their own have one too."""

    def objective(logprobs: torch.Tensor, _entropy: torch.Tensor, which: slice) -> torch.Tensor:
        return -(batch.weights[which] * torch.exp(logprobs - logprobs.detach())).sum() / z

    return objective


def run(policy: Policy, method: Method, z: float) -> None:
    """Leave the gradient of the whole forest at the weights, which have none before."""
    for batch in method.batches:
        policy.backward(batch, named(method.path), objective_of(batch, z), is_local=True)


def clear(policy: Policy) -> None:
    """Gradients of zero, allocated: a method's memory is what it holds beside them."""
    for weight in policy.trained_parameters().values():
        weight.grad = torch.zeros_like(weight)


def timed(policy: Policy, method: Method, z: float) -> float:
    clear(policy)
    _synchronise(policy)
    start = time.perf_counter()
    run(policy, method, z)
    _synchronise(policy)
    return time.perf_counter() - start


def _synchronise(policy: Policy) -> None:
    if policy.device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(policy: Policy, method: Method, z: float) -> int:
    """The most bytes that are live at once, beyond those before the call."""
    clear(policy)
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(policy, method, z)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(policy, method, z)
    live = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def flops(shape: ModelShape, head: float, layout: Layout) -> float:
    """Forward operations of a layout, its head included; a backward pass takes twice as many."""
    pairs = float((layout.positions.astype(np.int64) + 1).sum())
    [micro] = layout.micro_batches(WHOLE)
    return len(layout.token_ids) * shape.token + pairs * shape.pair + len(micro.predictors) * head


def gradient(policy: Policy, method: Method, z: float) -> torch.Tensor:
    clear(policy)
    run(policy, method, z)
    return torch.cat([weight.grad.double().flatten() for weight in policy.trained_parameters().values()])


def measure(policy: Policy, name: str, rounds: int, vocabulary: int) -> dict[str, str]:
    """Return one row of the table."""
    grower = Grower(vocabulary)
    SHAPES[name](grower)
    scores = grower.forest.score("grpo", {})
    shared, chains = (grower.forest.pack(scores, shared=flag) for flag in (True, False))

    def batches(layout: Layout, budget: int = 0) -> list[TrainBatch]:
        budget = budget or forward_tokens(layout, WHOLE, policy.device)
        return [to_batch(micro, policy.device) for micro in layout.micro_batches(budget)]

    shape = ModelShape.of(policy.model)
    choice = choose(Step.of([shared], WHOLE, policy.device), shape, policy.device, policy.dtype, "auto", {})
    fast = "flex" if policy.device.type == "cuda" and policy.dtype == torch.float32 else "runs"
    methods = {
        "loop": Method("chains", batches(chains, 1)),
        "padded": Method("chains", batches(chains, WHOLE)),
        "fast": Method(fast, batches(shared)),
        "memory": Method("depth-first", batches(shared, WHOLE)),
    }
    if policy.device.type == "cuda":
        methods["flex"] = Method("flex", batches(shared))
    methods["planner"] = (
        Method("chains", batches(chains)) if not choice.path.shares else Method(choice.path.name, batches(shared))
    )
    z = shared.weighted_tokens
    truth = gradient(policy, methods["loop"], z)
    tolerance = 1e-4 if policy.dtype == torch.float32 else 0.05
    for label, method in methods.items():
        difference = float((gradient(policy, method, z) - truth).norm() / truth.norm())
        assert difference < tolerance, f"{name}: {label} differs from chains by {difference:.1e}"
    times: dict[str, list[float]] = {label: [] for label in methods}
    for number in range(rounds):
        order = list(methods) if number % 2 == 0 else list(methods)[::-1]
        for label in order:
            times[label].append(timed(policy, methods[label], z))
    better = min(("loop", "padded"), key=lambda label: statistics.median(times[label]))

    def gain(label: str) -> float:
        return statistics.median(a / b for a, b in zip(times[better], times[label], strict=True))

    memory = {label: peak_bytes(policy, method, z) for label, method in methods.items() if label != "planner"}
    head = 2.0 * policy.model.config.hidden_size * policy.model.config.vocab_size
    bound = flops(shape, head, chains) / flops(shape, head, shared)
    row = {
        "shape": name,
        "leaves": str(len(chains.path_tokens)),
        "tokens": f"{len(shared.token_ids):,} for {len(chains.token_ids):,}",
        "bound: tokens": f"{len(chains.token_ids) / len(shared.token_ids):.2f}",
        "FLOPs": f"{bound:.2f}",
        "better chains": better,
        f"fast ({fast})": f"{gain('fast'):.2f}",
        "of bound": f"{gain('fast') / bound:.2f}",
        "depth-first": f"{gain('memory'):.2f}",
        "planner": f"{gain('planner'):.2f} ({choice.path.name})",
    }
    if "flex" in methods:
        row["flex"] = f"{gain('flex'):.2f}"
    row |= {f"peak {label}": f"{memory[label] / 2**20:.0f}" for label in ("loop", "padded", "fast")}
    row["peak depth-first"] = f"{memory['memory'] / 2**20:.0f}"
    row["of padded"] = f"{memory['memory'] / memory['padded']:.2f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", action="append", help="only shapes whose name contains this")
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    preset = PRESETS[given.preset]
    with tempfile.TemporaryDirectory() as path:
        model = AutoModelForCausalLM.from_config(Qwen2Config(**preset, max_position_embeddings=32768))
        model.save_pretrained(Path(path))
        dtype = given.dtype or ("float32" if given.device == "cpu" else "bfloat16")
        policy = Policy(Config.model_validate({"model": {"path": path, "device": given.device, "dtype": dtype}}))
    print(f"{given.preset}, {given.device}, {policy.dtype}, torch {torch.__version__}, {given.rounds} rounds, MiB")
    names = [name for name in SHAPES if not given.shape or any(part in name for part in given.shape)]
    for number, name in enumerate(names):
        row = measure(policy, name, given.rounds, preset["vocab_size"])
        if number == 0:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        print("| " + " | ".join(row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
