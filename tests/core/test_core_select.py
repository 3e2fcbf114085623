"""Draws are legal, uniform, pure in their key, and the same for ever."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from treegrpo_cli._core import derive_seed, keep_leaves, select_uniform

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)
NUM_KEYS = 6000


def chi_square_limit(categories: int) -> float:
    """Wilson and Hilferty's approximation of the chi-square quantile whose upper tail is about 1e-6."""
    freedom = categories - 1
    return freedom * (1 - 2 / (9 * freedom) + 4.75 * (2 / (9 * freedom)) ** 0.5) ** 3


def assert_uniform(counts: list[int]) -> None:
    expected = sum(counts) / len(counts)
    assert sum((count - expected) ** 2 / expected for count in counts) < chi_square_limit(len(counts))


@given(num_candidates=st.integers(1, 40), n=st.integers(0, 60), key=KEYS)
def test_with_replacement_there_are_always_n(num_candidates: int, n: int, key: list[int]) -> None:
    drawn = select_uniform(num_candidates, n, True, key)
    assert drawn.dtype == np.uint32
    assert len(drawn) == n
    assert set(drawn.tolist()) <= set(range(num_candidates))


@given(num_candidates=st.integers(0, 40), n=st.integers(1, 60), key=KEYS)
def test_without_replacement_none_comes_twice_and_few_candidates_come_all(
    num_candidates: int, n: int, key: list[int]
) -> None:
    if num_candidates == 0:
        with pytest.raises(ValueError, match=f"cannot choose {n} of 0"):
            select_uniform(num_candidates, n, False, key)
        return
    drawn = select_uniform(num_candidates, n, False, key).tolist()
    assert len(drawn) == min(n, num_candidates) == len(set(drawn))
    assert set(drawn) <= set(range(num_candidates))


@given(num_leaves=st.integers(0, 40), data=st.data(), key=KEYS)
def test_kept_leaves_ascend_and_none_comes_twice(num_leaves: int, data: st.DataObject, key: list[int]) -> None:
    k = data.draw(st.integers(0, num_leaves))
    kept = keep_leaves(num_leaves, k, key).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == k
    assert set(kept) <= set(range(num_leaves))


def test_more_leaves_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="cannot choose 4 of 3"):
        keep_leaves(3, 4, [0])


def test_selection_with_replacement_is_uniform_over_keys() -> None:
    pairs = [tuple(select_uniform(4, 2, True, [1, prompt, 0, 0, 0, 0]).tolist()) for prompt in range(NUM_KEYS)]
    assert_uniform([pairs.count((first, second)) for first in range(4) for second in range(4)])


def test_selection_without_replacement_is_uniform_over_keys() -> None:
    pairs = [tuple(select_uniform(5, 2, False, [1, 0, tree, 0, 0, 0]).tolist()) for tree in range(NUM_KEYS)]
    assert_uniform([pairs.count((first, second)) for first in range(5) for second in range(5) if first != second])


def test_keeping_is_uniform_over_sets_of_leaves() -> None:
    kept = [tuple(keep_leaves(6, 3, [0, prompt]).tolist()) for prompt in range(NUM_KEYS)]
    assert_uniform([kept.count(chosen) for chosen in combinations(range(6), 3)])


def test_seeds_of_neighbouring_keys_are_spread_evenly() -> None:
    seeds = [derive_seed([0, prompt, 0, 0, 0, turn]) for prompt in range(NUM_KEYS // 4) for turn in range(4)]
    assert len(set(seeds)) == NUM_KEYS
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert_uniform(np.bincount([seed >> 59 for seed in seeds], minlength=16).tolist())
    assert_uniform(np.bincount([seed & 15 for seed in seeds], minlength=16).tolist())


@given(key=KEYS)
def test_a_draw_depends_on_its_key_alone(key: list[int]) -> None:
    assert derive_seed(key) == derive_seed(tuple(key))
    assert select_uniform(1000, 9, True, key).tolist() == select_uniform(1000, 9, True, key).tolist()
    assert derive_seed(key) != derive_seed([*key, 0])


def test_seeds_never_change() -> None:
    assert {key: derive_seed(key) for key in [(), (0,), (0, 0), (1, 2, 3, 0, 1, 2), (-1,)]} == {
        (): 3395948882924712079,
        (0,): 7677174711969977290,
        (0, 0): 4230176000241083150,
        (1, 2, 3, 0, 1, 2): 4514634843848295342,
        (-1,): 5501845561446875147,
    }


def test_draws_never_change() -> None:
    assert select_uniform(10, 6, True, [1, 2, 3]).tolist() == [1, 8, 7, 3, 8, 1]
    assert select_uniform(10, 6, False, [1, 2, 3]).tolist() == [1, 9, 7, 6, 8, 3]
    assert keep_leaves(10, 6, [1, 2, 3]).tolist() == [1, 2, 3, 4, 7, 8]


MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def splitmix(purpose: int, key: list[int], count: int) -> list[int]:
    """SplitMix64 from its definition, started from the key's parts one after the other."""
    state = mix(purpose + GAMMA & MASK) + len(key) & MASK
    for part in key:
        state = mix((state + GAMMA & MASK) ^ mix(part & MASK))
    return [mix(state + step * GAMMA & MASK) for step in range(1, count + 1)]


@given(key=KEYS)
def test_draws_agree_with_the_generators_definition(key: list[int]) -> None:
    assert derive_seed(key) == splitmix(1, key, 1)[0] >> 1
    assert select_uniform(16, 9, True, key).tolist() == [draw % 16 for draw in splitmix(2, key, 9)]
    positions = list(range(8))
    for place, draw in enumerate(splitmix(3, key, 8)):
        other = place + draw % (8 - place)
        positions[place], positions[other] = positions[other], positions[place]
    assert keep_leaves(8, 3, key).tolist() == sorted(positions[:3])
