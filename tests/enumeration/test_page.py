"""The figures of docs/concepts/adaptive-credit.md are those of the code, and say what the page says of them."""

from pathlib import Path

import numpy as np
import pytest
from treegrpo_cli._core import estimators

from tests.enumeration.agents import AGENTS, LONG
from tests.enumeration.expected import expected, forest_of
from tests.enumeration.growing import RULES, outcomes
from tests.enumeration.page import BEGIN, COLUMNS, END, ROWS, cells, table

PAGE = (Path(__file__).parents[2] / "docs" / "concepts" / "adaptive-credit.md").read_text(encoding="utf-8")


def test_the_page_has_the_figures_of_the_code() -> None:
    assert BEGIN + table() + END in PAGE


def test_the_page_knows_no_estimator_that_does_not_exist() -> None:
    assert {estimator for estimator, _ in ROWS.values()} <= set(estimators())


def test_what_the_page_says_of_its_figures_is_so() -> None:
    figures = {row: dict(zip(COLUMNS, values, strict=True)) for row, values in cells().items()}
    assert all(wrong == 0 for row in ("`causal`", "`causal`, `weight=reach`") for _, wrong in figures[row].values())
    assert min(low for low, _ in figures["`causal`"].values()) > 0.97
    loo = figures["`state-loo`"]
    assert min(low for column, (low, _) in loo.items() if column != "1 tree, failures") > 0.98
    for row in ("`state-loo`", "`grpo`"):
        low, wrong = figures[row]["1 tree, failures"]
        assert low < 0.7
        assert wrong == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(1, 1, 2), (1, 2, 1), (2, 1, 1), (2, 2, 1)])
def test_causal_is_exact_at_every_state_under_every_rule(rule: str, size: tuple[int, int, int]) -> None:
    for agent in AGENTS.values():
        enumerated = forest_of(agent, outcomes(agent, RULES[rule], *size))
        got = expected(agent, enumerated, "causal")
        gradient = [agent.gradient(state) for state in agent.chances]
        np.testing.assert_allclose(got.weight, got.draws, rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.update, got.draws * gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["uniform", "outcomes"])
def test_causal_by_reach_is_exact_too_where_the_number_of_leaves_is_fixed(rule: str) -> None:
    for agent in AGENTS.values():
        for size in [(1, 1, 2), (2, 2, 1)]:
            enumerated = forest_of(agent, outcomes(agent, RULES[rule], *size))
            got = expected(agent, enumerated, "causal", {"weight": "reach"})
            gradient = [agent.gradient(state) for state in agent.chances]
            np.testing.assert_allclose(got.update, got.weight * gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_causal_is_exact_where_agents_take_three_turns(rule: str) -> None:
    enumerated = forest_of(LONG, outcomes(LONG, RULES[rule], 1, 2))
    got = expected(LONG, enumerated, "causal")
    gradient = [LONG.gradient(state) for state in LONG.chances]
    np.testing.assert_allclose(got.update, got.draws * gradient, rtol=0, atol=1e-12)


def test_plain_chains_are_right_under_leave_one_out_whatever_scores_them() -> None:
    """With as many leaves as chains every draw counts 1: `grpo` with `center=loo`, `scale=none` is the definition."""
    for agent in AGENTS.values():
        enumerated = forest_of(agent, outcomes(agent, RULES["uniform"], 3, 0, 0))
        for estimator, options in (("grpo", {"center": "loo", "scale": "none"}), ("causal", {})):
            got = expected(agent, enumerated, estimator, options)
            np.testing.assert_allclose(got.update, 3 * agent.policy_gradient(), rtol=0, atol=1e-12)
