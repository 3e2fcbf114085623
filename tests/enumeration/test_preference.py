"""The intra-tree term on the policy that drew the trees is the gradient of a step-level preference, with its weight."""

import math
from itertools import product

import numpy as np
import pytest

from tests.enumeration.agents import AGENTS
from tests.enumeration.expected import expected, forest_of
from tests.enumeration.growing import RULES, Agent, Floats, State, Trees, outcomes

BINARY = {name: agent for name, agent in AGENTS.items() if set(agent.rewards.values()) <= {0, 1}}
INTRA = {"variant": "intra_only", "scale": "none"}
BETA = 0.7


def moved(agent: Agent, state: State, by: float) -> Agent:
    """With another logit at one state."""
    logit = math.log(agent.chances[state] / (1 - agent.chances[state])) + by
    return Agent({**agent.chances, state: 1 / (1 + math.exp(-logit))}, agent.rewards)


def log_ratio(agent: Agent, reference: Agent, path: State) -> float:
    steps = [(path[:length], turn) for length, turn in enumerate(path)]
    return sum(math.log(agent.chance(s, turn) / reference.chance(s, turn)) for s, turn in steps)


def preference(agent: Agent, reference: Agent, chosen: State, rejected: State) -> float:
    """What DPO maximises: log sigmoid(beta * (log-ratio of the chosen - that of the rejected))."""
    margin = log_ratio(agent, reference, chosen) - log_ratio(agent, reference, rejected)
    return -math.log1p(math.exp(-BETA * margin))


def slope(agent: Agent, chosen: State, rejected: State) -> Floats:
    """By the logit of every state, at the policy that is its own reference; by central differences."""
    h = 1e-5
    pairs = ((moved(agent, state, h), moved(agent, state, -h)) for state in agent.chances)
    values = [[preference(side, agent, chosen, rejected) for side in pair] for pair in pairs]
    return np.array([(up - down) / (2 * h) for up, down in values])


def leaves(agent: Agent, trees: Trees) -> list[State]:
    return [turn.state for tree in trees for turn in tree if turn.state in agent.rewards]


@pytest.mark.parametrize("name", BINARY)
def test_each_trees_intra_term_is_the_mean_preference_of_its_winners_over_its_losers(name: str) -> None:
    agent, some = BINARY[name], 0
    slopes = {pair: slope(agent, *pair) for pair in product(agent.rewards, repeat=2)}
    for trees in outcomes(agent, RULES["uniform"], 1, 2):
        update = expected(agent, forest_of(agent, {trees: 1.0}), "tree-grpo", INTRA).update
        ends = leaves(agent, trees)
        winners = [end for end in ends if agent.rewards[end] == 1]
        losers = [end for end in ends if agent.rewards[end] == 0]
        pairs = [slopes[pair] for pair in product(winners, losers)]
        expected_update = 2 / BETA / len(ends) * np.sum(pairs, axis=0) if pairs else np.zeros(len(agent.chances))
        np.testing.assert_allclose(update, expected_update, rtol=0, atol=1e-8)
        some += bool(pairs)
    assert some > 5


def test_what_two_leaves_share_cancels() -> None:
    """Only turns from where they part on are preferred: the credit is of steps."""
    agent = BINARY["ladder"]
    by_state = dict(zip(agent.chances, slope(agent, (0, 1), (0, 0)), strict=True))
    assert by_state[()] == by_state[(1,)] == 0
    assert by_state[(0,)] == pytest.approx(BETA / 2)


@pytest.mark.parametrize("num_draws", [2, 3])
@pytest.mark.parametrize("name", BINARY)
def test_at_a_branching_point_the_expected_weight_is_that_of_a_win_times_that_of_a_loss(
    name: str, num_draws: int
) -> None:
    """Chains from one state: (n - 1) p(win) p(lose) of the mean difference between a winner and a loser."""
    agent = BINARY[name]
    grown = outcomes(agent, lambda agent, trees, tree: {-1: 1.0}, 1, num_draws - 1)
    update = expected(agent, forest_of(agent, grown), "tree-grpo", INTRA).update
    wins = {end: agent.reached(end) for end, reward in agent.rewards.items() if reward == 1}
    losses = {end: agent.reached(end) for end, reward in agent.rewards.items() if reward == 0}
    p_win, p_lose = math.fsum(wins.values()), math.fsum(losses.values())
    difference = np.zeros(len(agent.chances))
    for won, lost in product(wins, losses):
        chance = wins[won] / p_win * losses[lost] / p_lose
        difference += chance * 2 / BETA * slope(agent, won, lost)
    np.testing.assert_allclose(update, (num_draws - 1) * p_win * p_lose * difference, rtol=0, atol=1e-8)
