"""Siblings without replacement: every order in which turns can be drawn, and what their weights add up to."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from treegrpo_cli._core import NO_PARENT, Forest, Scores

CHANCES = (0.5, 0.3, 0.15, 0.05)
REWARDS = (0.0, 1.0, 0.25, 1.0)
VALUE = math.fsum(p * r for p, r in zip(CHANCES, REWARDS, strict=True))
GRADIENT = np.array([p * (r - VALUE) for p, r in zip(CHANCES, REWARDS, strict=True)])
"""Of the value at the only state, by the logits of its turns."""

Drawn = tuple[tuple[int, ...], ...]
"""The turns of each tree, in the order in which they were drawn."""


def orders(num: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """The turns that one tree's root can get, one after the other, none twice."""
    for turns in itertools.permutations(range(len(CHANCES)), num):
        chance, left = 1.0, 1.0
        for turn in turns:
            chance, left = chance * CHANCES[turn] / left, left - CHANCES[turn]
        yield turns, chance


def independent(num: int) -> Iterator[tuple[tuple[int, ...], float]]:
    for turns in itertools.product(range(len(CHANCES)), repeat=num):
        yield turns, math.prod(CHANCES[turn] for turn in turns)


def outcomes(num_trees: int, num: int, distinct: bool) -> dict[Drawn, float]:
    each = orders if distinct else independent
    groups = itertools.product(each(num), repeat=num_trees)
    return {tuple(turns for turns, _ in group): math.prod(chance for _, chance in group) for group in groups}


def scored(
    found: dict[Drawn, float], siblings: str, estimator: str = "state-loo"
) -> tuple[Scores, np.ndarray, np.ndarray]:
    """A prompt an outcome; the scores, and each node's probability and turn (-1: a root)."""
    prompt, parent, tree_of, turn, chance, rounds = [], [], [], [], [], []
    for number, (drawn, probability) in enumerate(found.items()):
        for turns in drawn:
            root = len(parent)
            parent += [NO_PARENT, *[root] * len(turns)]
            tree_of += [len(prompt)] * (len(turns) + 1)
            prompt.append(number)
            turn += [-1, *turns]
            rounds += [0, *range(len(turns))]
            chance += [probability] * (len(turns) + 1)
    drawn_at = np.array(turn)
    forest = Forest.from_columns(
        prompt=np.array(prompt, dtype=np.uint32),
        parent=np.array(parent, dtype=np.uint32),
        tree=np.array(tree_of, dtype=np.uint32),
        status=np.array([0 if place < 0 else 1 for place in turn], dtype=np.uint8),
        reward=np.array([np.nan if place < 0 else REWARDS[place] for place in turn]),
        round=np.array(rounds, dtype=np.uint32),
        token_start=np.arange(len(turn) + 1, dtype=np.uint64),
        token_ids=np.array([place + 1 for place in turn], dtype=np.uint32),
        sampled=drawn_at >= 0,
        logprobs=np.array([0.0 if place < 0 else math.log(CHANCES[place]) for place in turn], dtype=np.float32),
    )
    options = {"scale": "none"} | ({"siblings": siblings} if estimator == "state-loo" else {})
    return forest.score(estimator, options), np.array(chance), drawn_at


def expected_update(found: dict[Drawn, float], siblings: str, estimator: str = "state-loo") -> np.ndarray:
    """Of the logits of the turns: K times the gradient where it is right."""
    scores, chance, turn = scored(found, siblings, estimator)
    assert scores.weight is not None
    update = np.zeros(len(CHANCES))
    for place in np.flatnonzero(turn >= 0):
        log_gradient = -np.array(CHANCES)
        log_gradient[turn[place]] += 1
        update += chance[place] * scores.weight[place] * scores.advantage[place] * log_gradient
    return update


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_the_value_of_a_state_is_unbiased(num: int) -> None:
    for num_trees in (1, 2):
        found = outcomes(num_trees, num, distinct=True)
        scores, chance, turn = scored(found, "distinct")
        values = (chance * scores.value)[turn < 0] / num_trees
        assert math.fsum(found.values()) == pytest.approx(1)
        assert math.fsum(values) == pytest.approx(VALUE, abs=1e-7)  # log-probabilities are float32


@pytest.mark.parametrize("num", [1, 2, 3])
def test_the_update_is_unbiased_where_another_tree_gives_a_baseline(num: int) -> None:
    update = expected_update(outcomes(2, num, distinct=True), "distinct")
    np.testing.assert_allclose(update, 2 * num * GRADIENT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num", [2, 3, 4])
def test_in_a_tree_alone_the_first_draw_has_no_baseline_and_the_update_lacks_its_part(num: int) -> None:
    update = expected_update(outcomes(1, num, distinct=True), "distinct")
    np.testing.assert_allclose(update, (num - 1) * GRADIENT, rtol=0, atol=1e-6)


def test_equal_weights_for_such_siblings_would_be_biased() -> None:
    update = expected_update(outcomes(2, 3, distinct=True), "independent")
    direction = update @ GRADIENT / np.sqrt((update @ update) * (GRADIENT @ GRADIENT))
    assert direction < 0.99
    right = expected_update(outcomes(2, 3, distinct=False), "independent")
    np.testing.assert_allclose(right, 6 * GRADIENT, rtol=0, atol=1e-6)


def test_the_weights_of_a_prompt_add_up_to_its_leaves() -> None:
    scores, _, turn = scored(outcomes(2, 3, distinct=True), "distinct")
    assert scores.weight is not None
    np.testing.assert_allclose(scores.weight[turn >= 0].reshape(-1, 6).sum(axis=1), 6, atol=1e-9)


def test_causal_holds_for_independent_siblings_and_not_for_distinct_ones() -> None:
    right = expected_update(outcomes(1, 3, distinct=False), "independent", "causal")
    np.testing.assert_allclose(right, 3 * GRADIENT, rtol=0, atol=1e-12)
    wrong = expected_update(outcomes(1, 3, distinct=True), "independent", "causal")
    assert np.abs(wrong - 3 * GRADIENT).max() > 0.05
