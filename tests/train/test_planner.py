"""Which attention path a step takes: counts against naive ones, and shapes where each path must win."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2Config
from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.train import paths
from treegrpo_cli.train.batch import padded_tokens
from treegrpo_cli.train.counts import CACHED_TOKENS, ModelShape, Step, forward_tokens
from treegrpo_cli.train.planner import choose

from tests import reference_layout
from tests.forests import forest_of
from tests.reference import Tree
from tests.steps import make_chains, make_comb, make_step, make_trees, step_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WHOLE = 2**40
MODEL = ModelShape(token=1e9, pair=1e5, num_layers=24)
"""Half a billion weights: beside them what calls cost is little, even for the short trees here."""


def step_in(step: tuple[Forest, Scores], max_tokens: int = WHOLE, device: torch.device = CPU) -> Step:
    forest, scores = step
    return Step.of([forest.pack(scores)], max_tokens, device)


def path_of(step: Step, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> str:
    return choose(step, MODEL, device, dtype, "auto", {}).path.name


def naive_micros(trees: list[Tree], max_tokens: int) -> list[dict[str, Any]]:
    """The micro-batches of the reference; advantages do not matter to the counts."""
    _, nodes = forest_of(trees)
    laid_out = reference_layout.layout(trees, nodes, lambda *_: 0.0, 1.0, True)
    ranges = reference_layout.micro_batch_ranges(laid_out, max_tokens)
    return [reference_layout.micro_batch(laid_out, first, behind) for first, behind in ranges]


def naive_parts(micro: dict[str, Any]) -> int:
    """Runs, and of each run the segments that are seen by as many tokens behind it."""
    parents, ends = micro["parent_token"], micro["subtree_end"]
    starts = [token for token, parent in enumerate(parents) if parent is None or parent != token - 1]
    runs = list(zip(starts, [*starts[1:], len(parents)], strict=True))
    return len(runs) + sum(len({ends[token] for token in range(*run) if ends[token] > run[1]}) for run in runs)


def naive_edges(micro: dict[str, Any]) -> int:
    """An edge begins at a root and at each child of a token with several."""
    parents = micro["parent_token"]
    return sum(parent is None or parents.count(parent) > 1 for parent in parents)


@pytest.mark.parametrize("max_tokens", [20, 60, 200, WHOLE])
def test_a_step_is_counted_as_one_counts_it_by_hand(max_tokens: int) -> None:
    minibatches = [make_trees(seed, num_prompts=2) for seed in range(2)]
    layouts = [forest.pack(scores) for forest, scores in map(step_of, minibatches)]
    step = Step.of(layouts, max_tokens, CPU)
    whole = [micro for trees in minibatches for micro in naive_micros(trees, WHOLE)]
    micros = [micro for trees in minibatches for micro in naive_micros(trees, max_tokens)]
    paths = [int(tokens) for layout in layouts for tokens in layout.path_tokens]
    assert step.unique_tokens == sum(len(micro["token_ids"]) for micro in whole)
    assert step.split_tokens == sum(len(micro["token_ids"]) for micro in micros)
    assert step.pairs == sum(sum(map(sum, reference_layout.visible(micro))) for micro in micros)
    assert step.chain_tokens == sum(paths)
    assert step.chain_pairs == sum(k + 1 for tokens in paths for k in range(tokens))
    assert step.num_parts == sum(map(naive_parts, micros))
    assert step.num_edges == sum(map(naive_edges, micros))
    assert step.longest_path == max(paths)


@pytest.mark.parametrize("max_tokens", [1, 40, 100, WHOLE])
def test_padded_tokens_are_those_that_the_rows_take_in_their_micro_batches(max_tokens: int) -> None:
    forest, scores = make_step(0)
    micros = forest.pack(scores, shared=False).micro_batches(max_tokens)
    taken = sum(len(np.diff(micro.run_start)) * int(np.diff(micro.run_start).max()) for micro in micros)
    paths = forest.pack(scores).path_tokens.tolist()
    assert padded_tokens(paths, max_tokens) == taken
    assert step_in((forest, scores), max_tokens, CUDA).padded_tokens == taken


def test_padding_by_hand() -> None:
    assert padded_tokens([3, 7, 5], 14) == 7 * 2 + 3
    assert padded_tokens([3, 7, 5], 13) == 7 + 5 * 2
    assert padded_tokens([3, 7, 5], 1) == 15
    assert padded_tokens([], 10) == 0


def test_a_forward_on_a_cpu_holds_what_its_cache_holds_or_the_largest_tree() -> None:
    forest, scores = make_step(0)
    small = forest.pack(scores)
    assert forward_tokens(small, WHOLE, CPU) == CACHED_TOKENS
    assert forward_tokens(small, 100, CPU) == 100
    assert forward_tokens(small, 5000, CUDA) == 5000
    forest, scores = step_of([*make_trees(0), *make_comb(0, num_turns=100)])
    large = forest.pack(scores)
    assert len(large.token_ids) > forward_tokens(large, WHOLE, CPU) > CACHED_TOKENS
    [comb] = [micro for micro in large.micro_batches(forward_tokens(large, WHOLE, CPU)) if micro.positions.max() > 400]
    assert comb.num_context == 0


def test_chains_that_share_nothing_stay_chains() -> None:
    choice = choose(step_in(make_chains(0)), MODEL, CPU, torch.float32, "auto", {})
    assert choice.path.name == "chains"
    assert "too few are shared" in choice.reason
    assert path_of(step_in(step_of([]))) == "chains"


def test_a_model_so_small_that_calls_cost_more_than_arithmetic_stays_with_chains() -> None:
    tiny = ModelShape(token=1e5, pair=1e2, num_layers=2)
    assert choose(step_in(make_step(0)), tiny, CPU, torch.float32, "auto", {}).path.name == "chains"


def test_trees_that_fit_are_computed_whole() -> None:
    assert path_of(step_in(make_step(0))) == "runs"
    step = step_in(make_step(0), device=CUDA)
    gain = step.padded_tokens / step.unique_tokens  # of this model, whose attention hardly counts at these lengths
    said = f"{step.unique_tokens:,} tokens for {step.chain_tokens:,} of chains, {gain:.1f} times as fast by estimate"
    assert choose(step, MODEL, CUDA, torch.bfloat16, "auto", {}).reason == said


def test_a_tree_larger_than_the_budget_with_a_long_trunk_goes_depth_first() -> None:
    comb = step_of(make_comb(0))
    assert path_of(step_in(comb)) == "runs"
    assert path_of(step_in(comb, max_tokens=20)) == "depth-first"


@pytest.mark.parametrize(
    ("device", "dtype", "path"),
    [
        ("cpu", torch.float32, "runs"),
        ("cpu", torch.bfloat16, "runs"),
        ("cuda", torch.float32, "flex"),
        ("cuda", torch.bfloat16, "runs"),
        ("mps", torch.float32, "chains"),
        ("mps", torch.bfloat16, "chains"),
    ],
)
def test_the_device_and_its_numbers_decide_how_a_whole_forest_is_computed(
    device: str, dtype: torch.dtype, path: str
) -> None:
    assert path_of(step_in(make_step(0)), torch.device(device), dtype) == path


def test_on_cuda_only_trees_far_beyond_the_budget_go_depth_first() -> None:
    """An edge starts kernels that a GPU waits for: computing a short trunk again is sooner."""
    step = step_in(make_step(0), device=CUDA)
    short = replace(step, split_tokens=step.unique_tokens + 100)
    assert path_of(short, CUDA, torch.bfloat16) != "depth-first"
    tokens = 1_000_000
    long = replace(step, unique_tokens=tokens, split_tokens=5 * tokens, padded_tokens=9 * tokens, num_edges=100)
    assert path_of(long, CUDA, torch.bfloat16) == "depth-first"


def test_settings_and_refusals_come_before_any_estimate() -> None:
    shared, alone = step_in(make_step(0)), step_in(make_chains(0))
    for path in ("chains", "runs", "flex", "dense", "depth-first"):
        for step in (shared, alone):
            choice = choose(step, MODEL, CPU, torch.float32, path, {})
            assert choice.path.name == path
            assert choice.reason.endswith("as train.attention_path asks")
    refusals = {path.name: "its layers carry a state" for path in paths.registered() if path.shares}
    choice = choose(shared, MODEL, CPU, torch.float32, "auto", refusals)
    assert choice.path.name == "chains"
    assert choice.reason == f"{shared.chain_tokens:,} tokens: its layers carry a state"


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_operations_are_those_that_torch_counts(tied: bool) -> None:
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    shape, length = ModelShape.of(model), 20
    with FlopCounterMode(display=False) as counted:
        model.get_decoder()(input_ids=torch.arange(length)[None])
    # torch counts attention over all pairs, also those that the mask hides
    assert shape.token * length + shape.pair * length**2 == pytest.approx(counted.get_total_flops(), rel=0.01)
    assert shape.num_layers == 3


def test_of_experts_those_count_that_a_token_goes_through() -> None:
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    attention = 32 * 32 * 2 + 32 * 16 * 2
    experts = 2 * 3 * 32 * 64
    assert ModelShape.of(AutoModelForCausalLM.from_config(config)).token == pytest.approx(
        2 * 2 * (attention + experts), rel=0.02
    )
