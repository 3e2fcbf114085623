"""Draws are legal, uniform, pure in their key, and the same for ever."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from treegrpo_cli._core import CoreError, Forest, derive_seed, describe_selection_rules, keep_leaves, select_uniform

from tests.reference_rules import splitmix

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


@pytest.mark.parametrize("replacement", [True, False])
def test_a_population_takes_no_memory(replacement: bool) -> None:
    """A vector of it would take 17 GB."""
    drawn = select_uniform(2**32 - 1, 5, replacement, [1])
    assert len(set(drawn.tolist())) == 5
    assert len(keep_leaves(2**32 - 1, 3, [1])) == 3


@pytest.mark.parametrize("number", [-1, 2**32, 5_000_000_000, 2**70])
def test_numbers_out_of_range_are_value_errors(number: int) -> None:
    for call in (
        lambda: select_uniform(10, number, True, [0]),
        lambda: select_uniform(number, 1, True, [0]),
        lambda: keep_leaves(10, number, [0]),
    ):
        with pytest.raises(ValueError, match="an integer is out of range, expected 0 to 4294967295"):
            call()


def test_keys_out_of_range_are_value_errors() -> None:
    for key in ([2**63], [0, -(2**63) - 1]):
        with pytest.raises(ValueError, match="an integer is out of range, expected -9223372036854775808 to"):
            derive_seed(key)


def test_more_draws_than_anybody_needs_are_refused() -> None:
    for call in (
        lambda: select_uniform(3, 2**24 + 1, True, [0]),
        lambda: select_uniform(2**32 - 1, 2**32 - 1, False, [0]),
        lambda: keep_leaves(2**32 - 1, 2**32 - 1, [0]),
    ):
        with pytest.raises(CoreError, match="more than 16777216 draws"):
            call()
    assert len(select_uniform(3, 2**32 - 1, False, [0])) == 3


def test_a_rule_by_name_draws_among_node_ids() -> None:
    forest = Forest()
    root = forest.add_tree(0, np.zeros(1, np.uint32))
    for _ in range(4):
        forest.add_node(root, np.zeros(0, np.uint32), np.zeros(0, bool), np.zeros(0, np.float32), 0, 0)
    candidates = np.array([0, 2, 4], dtype=np.uint32)
    for replacement in (True, False):
        drawn = forest.select(candidates, 5, [1, 2], "uniform", {"replacement": replacement})
        assert drawn.tolist() == candidates[select_uniform(3, 5, replacement, [1, 2])].tolist()
    assert forest.select(candidates, 5, [1, 2]).tolist() == forest.select(candidates, 5, [1, 2], "uniform", {}).tolist()
    with pytest.raises(CoreError, match="unknown selection rule 'uniforn'; did you mean 'uniform'"):
        forest.select(candidates, 1, [0], "uniforn")
    with pytest.raises(CoreError, match="uniform has no option 'alpha'; it has replacement"):
        forest.select(candidates, 1, [0], "uniform", {"alpha": 1})
    with pytest.raises(CoreError, match="no node 9: the forest has 5"):
        forest.select(np.array([9], dtype=np.uint32), 1, [0])


def test_rules_are_described() -> None:
    uniform = describe_selection_rules()[0]
    assert (uniform["name"], uniform["formula"]) == ("uniform", "P(n) = 1 / number of candidates")
    assert uniform["options"] == {"replacement": {"default": True, "legal": "true or false", "beside": None}}


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


@given(key=KEYS)
def test_draws_agree_with_the_generators_definition(key: list[int]) -> None:
    assert derive_seed(key) == splitmix(1, key, 1)[0] >> 1
    assert select_uniform(16, 9, True, key).tolist() == [draw % 16 for draw in splitmix(2, key, 9)]
    positions = list(range(8))
    for place, draw in enumerate(splitmix(3, key, 8)):
        other = place + draw % (8 - place)
        positions[place], positions[other] = positions[other], positions[place]
    assert keep_leaves(8, 3, key).tolist() == sorted(positions[:3])
