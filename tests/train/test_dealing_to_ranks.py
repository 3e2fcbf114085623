"""Micro-batches are dealt to ranks: all of them once, and in as little time as a slow search finds."""

from itertools import permutations, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from treegrpo_cli._core import Layout, MicroBatch
from treegrpo_cli.train.batch import layouts
from treegrpo_cli.train.counts import Step
from treegrpo_cli.train.dealing import (
    Hand,
    best_hands,
    budgets,
    deal_loads,
    deal_rounds,
    idle_batch,
    time_of_loads,
    time_of_rounds,
)
from treegrpo_cli.train.paths import named

from tests.steps import make_step, make_trees, step_of

WORK = st.lists(st.integers(1, 50).map(float), max_size=30)
LITTLE_WORK = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=6)
RANKS = st.integers(1, 5)
WHOLE = 1 << 40


def dealt(hands: list[Hand]) -> list[int]:
    return sorted(number for hand in hands for number in hand if number is not None)


def least_rounds(work: list[float], num_ranks: int) -> float:
    """The least sum of rounds, by trying every order in as many rounds as it takes."""
    return min(
        sum(max(order[start : start + num_ranks]) for start in range(0, len(order), num_ranks))
        for order in permutations(work)
    )


def least_load(work: list[float], num_ranks: int) -> float:
    """The least greatest load, by trying every assignment."""
    return min(
        max(sum(one for one, owner in zip(work, owners, strict=True) if owner == rank) for rank in range(num_ranks))
        for owners in product(range(num_ranks), repeat=len(work))
    )


@given(WORK, RANKS)
def test_each_is_dealt_once(work: list[float], num_ranks: int) -> None:
    for deal in (deal_rounds, deal_loads):
        hands = deal(work, num_ranks)
        assert len(hands) == num_ranks
        assert dealt(hands) == list(range(len(work)))


@given(WORK, RANKS)
def test_ranks_that_keep_step_have_equally_many_and_one_at_least(work: list[float], num_ranks: int) -> None:
    hands = deal_rounds(work, num_ranks)
    assert {len(hand) for hand in hands} == {max(1, -(-len(work) // num_ranks))}


@given(LITTLE_WORK, st.integers(1, 4))
def test_rounds_take_the_least_that_any_order_of_them_takes(work: list[float], num_ranks: int) -> None:
    assert time_of_rounds(work, deal_rounds(work, num_ranks)) == least_rounds(work, num_ranks)


@given(LITTLE_WORK, st.integers(1, 3))
def test_the_greatest_load_is_at_most_four_thirds_of_the_least(work: list[float], num_ranks: int) -> None:
    time = time_of_loads(work, deal_loads(work, num_ranks))
    assert time <= (4 / 3 - 1 / (3 * num_ranks)) * least_load(work, num_ranks) + 1e-9


def test_the_example_is_dealt_as_the_module_says() -> None:
    hands = deal_rounds([5, 9, 1, 8, 4], 2)
    assert [[None if number is None else [5, 9, 1, 8, 4][number] for number in hand] for hand in hands] == [
        [9, 4, 1],
        [8, 5, None],
    ]
    assert time_of_rounds([5, 9, 1, 8, 4], hands) == 9 + 5 + 1
    assert time_of_rounds([5, 9, 1, 8, 4], hands, round_work=2) == 9 + 5 + 1 + 6


@pytest.fixture
def layout() -> Layout:
    [found] = layouts(*make_step(0), 0.0, 4, shared=True)
    return found


def cut(layout: Layout, max_tokens: int) -> list[MicroBatch]:
    return layout.micro_batches(max_tokens)


def tokens(micro: MicroBatch) -> float:
    return float(len(micro.token_ids))


@pytest.mark.parametrize("round_work", [None, 0.0, 1e9])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_every_target_is_computed_by_one_rank(layout: Layout, num_ranks: int, round_work: float | None) -> None:
    hands = best_hands(layout, cut, WHOLE, num_ranks, tokens, round_work)
    found = sorted(int(target) for hand in hands for micro in hand if micro is not None for target in micro.target_ids)
    [whole] = layout.micro_batches(WHOLE)
    assert found == sorted(whole.target_ids.tolist())


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_step_that_fits_one_micro_batch_is_cut_for_all_ranks(layout: Layout, num_ranks: int) -> None:
    hands = best_hands(layout, cut, WHOLE, num_ranks, tokens, 0.0)
    assert all(hand[0] is not None for hand in hands)
    loads = [sum(tokens(micro) for micro in hand if micro is not None) for hand in hands]
    assert max(loads) < 1.5 * len(layout.token_ids) / num_ranks


def test_a_tree_is_cut_only_where_that_takes_less() -> None:
    """Both halves compute its root; where rounds are dear, or work is no less for it, nothing is cut at all."""
    [tree] = layouts(*step_of(make_trees(0, num_prompts=1, trees_a_prompt=1)), 0.0, 1, shared=True)
    halves = best_hands(tree, cut, WHOLE, 2, tokens, 0.0)
    assert all(micro is not None for hand in halves for micro in hand)
    assert sum(tokens(micro) for hand in halves for micro in hand if micro is not None) > len(tree.token_ids)
    assert best_hands(tree, cut, WHOLE, 2, lambda micro: 1.0, 0.0)[1] == [None]
    assert best_hands(tree, cut, WHOLE, 2, tokens, None)[1] != []
    assert best_hands(tree, cut, WHOLE, 2, lambda micro: 1.0, None)[1] == []


def test_sizes_that_are_tried_begin_with_the_given_one(layout: Layout) -> None:
    total = len(layout.token_ids)
    assert budgets(layout, 40, 2) == [40]
    assert budgets(layout, WHOLE, 2)[0] == WHOLE
    assert -(-total // 2) in budgets(layout, WHOLE, 2)


def test_counts_of_micro_batches_add_up_to_those_of_the_step(layout: Layout) -> None:
    step = Step.of([layout], 64, torch.device("cuda"))
    parts = [Step.of_one(micro) for micro in layout.micro_batches(64)]
    assert len(parts) > 3
    for name in ("split_tokens", "pairs", "num_parts", "num_edges"):
        assert sum(getattr(part, name) for part in parts) == getattr(step, name), name


def test_rows_are_counted_with_their_padding() -> None:
    [rows] = layouts(*make_step(0), 0.0, 4, shared=False)
    [micro] = named("chains").parts(rows, WHOLE, torch.device("cuda"))
    lengths = rows.path_tokens.astype(int)
    counted: Any = Step.of_one(micro)
    assert counted.padded_tokens == lengths.max() * len(lengths)
    assert counted.chain_pairs == float((lengths * (lengths + 1) / 2).sum())


def test_an_idle_rank_forwards_one_target() -> None:
    batch = idle_batch(torch.device("cpu"))
    assert (len(batch.token_ids), len(batch.target_ids), len(batch.predictors)) == (2, 1, 1)
    assert idle_batch(torch.device("cpu")) is batch
