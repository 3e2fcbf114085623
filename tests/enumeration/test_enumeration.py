"""Outcomes are all there are, and `causal` is right at every state whatever chose where to expand."""

import math
from typing import Any

import numpy as np
import pytest

from tests import reference_adaptive
from tests.enumeration.agents import AGENTS, LONG
from tests.enumeration.growing import RULES, Agent, Floats, Outcomes, Trees, outcomes
from tests.reference import Node, walk

SIZES = [(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)]
"""Trees, draws a tree in each round, rounds."""


def dicts(agent: Agent, trees: Trees) -> tuple[list[dict[str, Any]], dict[int, tuple[int, ...]]]:
    """The reference's trees, and the state behind each node."""
    forest, behind = [], {}
    for tree in trees:
        nodes: list[Node] = [{"children": [], "reward": None, "tokens": [], "round": 0}]
        behind[id(nodes[0])] = ()
        for turn in tree:
            node = {"children": [], "reward": agent.rewards.get(turn.state), "round": turn.round}
            node["tokens"] = [(turn.state[-1], True, math.log(agent.chance(turn.state[:-1], turn.state[-1])))]
            nodes[turn.parent + 1]["children"].append(node)
            nodes.append(node)
            behind[id(node)] = turn.state
        forest.append({"prompt": 0, "root": nodes[0]})
    return forest, behind


def expected_updates(agent: Agent, grown: Outcomes, options: dict[str, Any]) -> tuple[Floats, Floats]:
    """Of `causal`, by the reference: state by state, with the expected sum of the weights of the draws there."""
    number = {state: place for place, state in enumerate(agent.chances)}
    update, weights = np.zeros(len(number)), np.zeros(len(number))
    for trees, chance in grown.items():
        forest, behind = dicts(agent, trees)
        shown = reference_adaptive.causal(forest, {"scale": "none", **options})
        for node in [node for tree in forest for node in walk(tree["root"])[1:]]:
            *above, turn = behind[id(node)]
            log_gradient = turn - agent.chances[tuple(above)]
            weight, advantage = shown[id(node)]["weight"], shown[id(node)]["advantage"]
            update[number[tuple(above)]] += chance * weight * advantage * log_gradient
            weights[number[tuple(above)]] += chance * weight
    return update, weights


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_all_outcomes_have_a_probability_of_one_together(rule: str, size: tuple[int, int, int]) -> None:
    for agent in AGENTS.values():
        assert math.fsum(outcomes(agent, RULES[rule], *size).values()) == pytest.approx(1, abs=1e-12)


def test_one_chain_alone_comes_by_each_state_as_often_as_it_should() -> None:
    agent = AGENTS["ladder"]
    grown = outcomes(agent, RULES["uniform"], 1, 1, rounds=0)
    assert {trees[0][-1].state: chance for trees, chance in grown.items()} == pytest.approx(
        {end: agent.reached(end) for end in agent.rewards}
    )


def test_the_policy_gradient_is_the_slope_of_the_value() -> None:
    for agent in AGENTS.values():
        for place, state in enumerate(agent.chances):
            logit = math.log(agent.chances[state] / (1 - agent.chances[state]))

            def value(moved: float, agent: Agent = agent, state: Any = state, logit: float = logit) -> float:
                chance = 1 / (1 + math.exp(-logit - moved))
                return Agent({**agent.chances, state: chance}, agent.rewards).value(())

            slope = (value(1e-5) - value(-1e-5)) / 2e-5
            assert agent.policy_gradient()[place] == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("agent", AGENTS)
def test_the_reference_of_causal_is_exact_at_every_state(agent: str, size: tuple[int, int, int], rule: str) -> None:
    tabular = AGENTS[agent]
    update, weights = expected_updates(tabular, outcomes(tabular, RULES[rule], *size), {"weight": "one"})
    gradient = [tabular.gradient(state) for state in tabular.chances]
    np.testing.assert_allclose(update, weights * gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["uniform", "outcomes"])
def test_the_reference_of_causal_by_reach_is_exact_where_the_number_of_leaves_is_fixed(rule: str) -> None:
    tabular = AGENTS["ladder"]
    for size in SIZES:
        update, weights = expected_updates(tabular, outcomes(tabular, RULES[rule], *size), {"weight": "reach"})
        gradient = [tabular.gradient(state) for state in tabular.chances]
        np.testing.assert_allclose(update, weights * gradient, rtol=0, atol=1e-12)


def test_causal_is_exact_on_three_turns_too() -> None:
    grown = outcomes(LONG, RULES["failures"], 1, 1, rounds=2)
    update, weights = expected_updates(LONG, grown, {"weight": "one"})
    gradient = [LONG.gradient(state) for state in LONG.chances]
    np.testing.assert_allclose(update, weights * gradient, rtol=0, atol=1e-12)


def test_a_baseline_that_knew_the_draw_would_not_be_exact() -> None:
    """The same enumeration tells a biased estimator: each leaf against all leaves of its prompt."""
    tabular = AGENTS["ladder"]
    grown = outcomes(tabular, RULES["failures"], 1, 2)
    biased, weights = np.zeros(3), np.zeros(3)
    number = {state: place for place, state in enumerate(tabular.chances)}
    for trees, chance in grown.items():
        rewards = [tabular.rewards[turn.state] for tree in trees for turn in tree if turn.state in tabular.rewards]
        for turn in [turn for tree in trees for turn in tree if turn.state in tabular.rewards]:
            for length, action in enumerate(turn.state):
                at = turn.state[:length]
                credit = tabular.rewards[turn.state] - sum(rewards) / len(rewards)
                biased[number[at]] += chance * credit * (action - tabular.chances[at])
                weights[number[at]] += chance
    gradient = [tabular.gradient(state) for state in tabular.chances]
    assert np.abs(biased - weights * gradient).max() > 0.01
