"""Estimators under each selection rule -> how right each one's expected update is: docs/concepts/adaptive-credit.md."""

import math
from collections.abc import Iterator
from typing import Any

from tests.enumeration.agents import AGENTS
from tests.enumeration.expected import Enumerated, cosine, expected, forest_of
from tests.enumeration.growing import RULES, Agent, outcomes

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "`causal`": ("causal", {}),
    "`causal`, `weight=reach`": ("causal", {"weight": "reach"}),
    "`state-loo`": ("state-loo", {}),
    "`state-loo`, `scale=none`": ("state-loo", {"scale": "none"}),
    "`grpo`": ("grpo", {}),
    "`grpo`, `center=loo`, `scale=none`": ("grpo", {"center": "loo", "scale": "none"}),
    "`tree-grpo`": ("tree-grpo", {}),
    "`ancestor`": ("ancestor", {}),
    "`redistribute`": ("redistribute", {}),
    "`parent`": ("parent", {}),
    "`sibling`": ("sibling", {}),
    "`global-local`": ("global-local", {}),
    "`depth`": ("depth", {}),
}
"""What a row is called -> the estimator and its options; all else is by default."""

COLUMNS = {"3 chains": ("uniform", (3, 0, 0))}
COLUMNS |= {f"1 tree, {rule}": (rule, (1, 1, 2)) for rule in RULES}
COLUMNS |= {f"2 trees, {rule}": (rule, (2, 1, 1)) for rule in RULES}
"""What a column is called -> the rule, and trees, draws a tree in each round, rounds."""

WRONG = 1e-9
"""An update below this is none; one of the wrong sign beyond it is pushed the wrong way."""


def grown(column: str) -> list[tuple[Agent, Enumerated]]:
    rule, size = COLUMNS[column]
    return [(agent, forest_of(agent, outcomes(agent, RULES[rule], *size))) for agent in AGENTS.values()]


def cell(forests: list[tuple[Agent, Enumerated]], estimator: str, options: dict[str, Any]) -> tuple[float, int]:
    """The lowest cosine with the policy gradient over the agents, and how many of their states are pushed away."""
    cosines, wrong = [], 0
    for agent, enumerated in forests:
        update, truth = expected(agent, enumerated, estimator, options).update, agent.policy_gradient()
        cosines.append(cosine(update, truth))
        wrong += int((update * truth < -WRONG).sum())
    return min(cosines), wrong


def cells() -> dict[str, list[tuple[float, int]]]:
    forests = {column: grown(column) for column in COLUMNS}
    return {row: [cell(forests[column], *asked) for column in COLUMNS] for row, asked in ROWS.items()}


def table() -> str:
    """Markdown. `none`: no credit at all; what is pushed the wrong way is shown where there is something."""

    def lines() -> Iterator[str]:
        yield "| estimator | " + " | ".join(COLUMNS) + " |"
        yield "|---" * (len(COLUMNS) + 1) + "|"
        for row, figures in cells().items():
            shown = [
                "none" if math.isnan(low) else f"{low:.3f}" + (f" · {wrong} wrong" if wrong else "")
                for low, wrong in figures
            ]
            yield f"| {row} | " + " | ".join(shown) + " |"

    return "\n".join(lines()) + "\n"


BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"


def with_table(page: str) -> str:
    """A page with its table made anew."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail
