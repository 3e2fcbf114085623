"""What estimators keep where rewards are flipped: the figures of adaptive-credit.md are those of the code."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from treegrpo_cli._core import estimators

from tests.enumeration.agents import AGENTS
from tests.enumeration.growing import RULES, outcomes
from tests.enumeration.noise import BEGIN, CHAINS, END, LEVELS, PLAIN, ROWS, cells, kept, table

PAGE = (Path(__file__).parents[2] / "docs" / "concepts" / "adaptive-credit.md").read_text(encoding="utf-8")


def test_the_page_has_the_figures_of_the_code_for_every_estimator() -> None:
    assert BEGIN + table() + END in PAGE
    assert {name for name, _, _ in ROWS.values()} == set(estimators())


def test_chains_keep_what_pencil_and_paper_say() -> None:
    """Rewards of four chains less the mean of the others, one by one: no forest, no estimator of the core."""
    agent = AGENTS["ladder"]
    states = list(agent.chances)
    for p, found in list(zip(LEVELS, kept("ladder", "grpo", PLAIN, CHAINS), strict=True))[2:3]:
        inner, square, true_square, mean = 0.0, 0.0, 0.0, np.zeros(len(states))
        for paths in itertools.product(agent.rewards, repeat=4):
            chance = np.prod([agent.reached(path) for path in paths])
            true = np.array([agent.rewards[path] for path in paths])
            gradient = np.zeros((4, len(states)))
            for chain, path in enumerate(paths):
                for depth, turn in enumerate(path):
                    gradient[chain, states.index(path[:depth])] = turn - agent.chances[path[:depth]]
            for flips in itertools.product((0, 1), repeat=4):
                weight = chance * np.prod([p if flip else 1 - p for flip in flips])
                updates = [((rewards - rewards.mean()) * 4 / 3) @ gradient for rewards in (np.abs(true - flips), true)]
                inner += weight * updates[0] @ updates[1]
                square += weight * updates[0] @ updates[0]
                true_square += weight * updates[1] @ updates[1]
                mean += weight * updates[0]
        assert found == pytest.approx((inner / np.sqrt(square * true_square), mean @ mean / square))


def test_four_leaves_are_flipped_in_sixteen_ways() -> None:
    for trees, _ in itertools.islice(outcomes(AGENTS["needle"], RULES["uniform"], 2, 1, 1).items(), 20):
        assert sum(len(turn.state) == 2 for tree in trees for turn in tree) == 4


def test_what_the_page_says_of_noise_is_so() -> None:
    figures = cells()
    for levels in figures.values():
        assert levels[0].cosine == pytest.approx(1)
        for less, more in itertools.pairwise(levels):
            assert more.cosine < less.cosine
            assert more.share < less.share
        assert 0.65 <= levels[2].cosine < 0.69
        assert 0.43 < levels[2].share / levels[0].share < 0.48
        assert levels[3].share / levels[0].share < 0.25
    least = sorted(figures, key=lambda row: figures[row][0].share)[:3]
    assert (
        set(least)
        == {"`parent`", "`sibling`", "`ancestor`"}
        == set(sorted(figures, key=lambda row: figures[row][3].share)[:3])
    )
