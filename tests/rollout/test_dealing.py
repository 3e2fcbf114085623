"""Dealing expansions is what a slow one with exact fractions and pegs on a line does."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import derive_seed
from treegrpo_cli.rollout.dealing import deal
from treegrpo_cli.rollout.disagreement import RewardsSoFar, disagreement


def deal_slowly(num: int, weights: list[float], room: list[int], key: list[int]) -> list[int]:
    """First those with weight, then the others alike; a prompt whose share is beyond its room is full and drops out."""
    dealt = [0] * len(weights)
    for has_weight in (True, False):
        playing = {p: Fraction(w) if w else Fraction(1) for p, w in enumerate(weights) if (w > 0) == has_weight}
        left = min(num - sum(dealt), sum(room[p] for p in playing))
        while full := [p for p in playing if left * playing[p] / sum(playing.values()) >= room[p]]:
            for p in full:
                dealt[p] = room[p]
                left -= room[p]
                del playing[p]
            if left <= 0:
                break
        if left <= 0 or not playing:
            continue
        shares = {p: left * w / sum(playing.values()) for p, w in playing.items()}
        offset, start = Fraction(derive_seed(key), 2**63), Fraction(0)
        for p, share in shares.items():
            dealt[p] = sum(start < peg - offset <= start + share for peg in range(1, left + 1))
            start += share
    return dealt


hands = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.1389, 1.0, 3.5]) | st.floats(0.001, 10), st.integers(0, 9)), max_size=7
)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 40), hands, st.integers(0, 10**6))
def test_dealing_is_what_the_slow_one_does(num: int, hand: list[tuple[float, int]], key: int) -> None:
    weights, room = [weight for weight, _ in hand], [most for _, most in hand]
    dealt = deal(num, weights, room, [key])
    assert sum(dealt) == min(num, sum(room))
    assert all(0 <= count <= most for count, most in zip(dealt, room, strict=True))
    assert dealt == deal_slowly(num, weights, room, [key])


def test_shares_are_right_on_the_whole() -> None:
    weights, num_keys = [0.25, 0.14, 0.0, 0.05], 2000
    hands = [deal(5, weights, [9] * 4, [key]) for key in range(num_keys)]
    for place, weight in enumerate(weights):
        counts = [hand[place] for hand in hands]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) / num_keys == pytest.approx(5 * weight / sum(weights), abs=0.05)


def test_where_no_prompt_has_a_weight_all_get_the_same() -> None:
    assert deal(9, [0.0, 0.0, 0.0], [5, 5, 5], [1]) == [3, 3, 3]
    assert deal(9, [], [], [1]) == []
    assert deal(9, [1.0], [0], [1]) == [0]


@given(st.integers(0, 9), st.integers(0, 9), st.floats(0.1, 10))
def test_doubt_is_that_of_a_coin_where_rewards_are_0_and_1(num_wins: int, num_losses: int, kappa: float) -> None:
    q = (num_wins + kappa * 0.5) / (num_wins + num_losses + kappa)
    assert disagreement([1.0] * num_wins + [0.0] * num_losses, RewardsSoFar(), kappa) == pytest.approx(q * (1 - q))


def test_what_the_run_has_got_so_far_stands_for_what_is_not_known() -> None:
    so_far = RewardsSoFar().with_more([0.0, 0.0]).with_more([0.5, -1.0])
    assert so_far.mean == pytest.approx((0 + 1 + 0 + 0 + 0.5 - 1) / 6)
    square = (0 + 1 + 0 + 0 + 0.25 + 1) / 6
    assert disagreement([], so_far, 2.0) == pytest.approx(square - so_far.mean**2)


def test_equal_rewards_are_in_less_doubt_the_more_there_are() -> None:
    doubts = [disagreement([0.5] * count, RewardsSoFar(), 1.0) for count in (1, 2, 6)]
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[-1] < disagreement([0.4, 0.6] * 3, RewardsSoFar(), 1.0)
