"""The agents of the table: two binary turns, and one of three."""

from tests.enumeration.growing import Agent, agent

AGENTS: dict[str, Agent] = {
    "ladder": agent([0.3, 0.6, 0.2], [0, 1, 1, 0]),
    "needle": agent([0.5, 0.5, 0.5], [0, 1, 0, 0]),
    "agree": agent([0.7, 0.2, 0.8], [1, 0, 0, 1]),
    "rare": agent([0.2, 0.4, 0.7], [0, 0, 0, 1]),
    "easy": agent([0.6, 0.3, 0.5], [1, 1, 0, 1]),
    "graded": agent([0.4, 0.8, 0.2], [0, 0.8, 0.3, 0.5]),
}
"""Rewards of 0 and 1 but for the last one's."""

LONG = agent([0.4, 0.6, 0.3, 0.5, 0.8, 0.25, 0.7], [0, 1, 0, 0, 1, 0, 1, 1])
