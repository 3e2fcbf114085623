"""Outcomes with their probabilities -> the expected update of an estimator, state by state.

An update is the sum over the turns of a prompt of weight * advantage * gradient of the turn's log-probability, by the
logit of turn 1 at its state: what one step of the loss does before its denominator.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from treegrpo_cli._core import NO_PARENT, Forest, Scores
from treegrpo_cli.types import NodeStatus

from tests.enumeration.growing import Agent, Floats, Outcomes


class Enumerated(NamedTuple):
    """A forest with a prompt for each outcome, and what belongs to its nodes; N nodes, P prompts."""

    forest: Forest
    chance: Floats
    """Of the node's prompt, [N]."""
    at: NDArray[np.int64]
    """The state that the node was drawn at, its place among the agent's states; -1 on roots, [N]."""
    log_gradient: Floats
    """Of the node's log-probability by the logit of turn 1 there, 0 on roots, [N]."""


def forest_of(agent: Agent, outcomes: Outcomes, rounds_known: bool = True) -> Enumerated:
    """A turn is one token, and so is the prompt."""
    number = {state: place for place, state in enumerate(agent.chances)}
    prompt, parent, tree_of, rounds, states, chance = [], [], [], [], [], []
    for prompt_id, (trees, probability) in enumerate(outcomes.items()):
        for tree in trees:
            root = len(parent)
            parent += [NO_PARENT, *(root + 1 + turn.parent for turn in tree)]
            tree_of += [len(prompt)] * (len(tree) + 1)
            prompt.append(prompt_id)
            rounds += [0, *(turn.round for turn in tree)]
            states += [(), *(turn.state for turn in tree)]
            chance += [probability] * (len(tree) + 1)
    own = [state[-1] if state else 0 for state in states]
    p = [agent.chance(state[:-1], state[-1]) if state else 1.0 for state in states]
    ends = [state in agent.rewards for state in states]
    forest = Forest.from_columns(
        prompt=np.array(prompt, dtype=np.uint32),
        parent=np.array(parent, dtype=np.uint32),
        tree=np.array(tree_of, dtype=np.uint32),
        status=np.array([NodeStatus.DONE if end else NodeStatus.OPEN for end in ends], dtype=np.uint8),
        reward=np.array([agent.rewards.get(state, np.nan) for state in states]),
        token_start=np.arange(len(states) + 1, dtype=np.uint64),
        token_ids=np.array(own, dtype=np.uint32),
        sampled=np.array([bool(state) for state in states]),
        logprobs=np.log(np.array(p)).astype(np.float32),
        **({"round": np.array(rounds, dtype=np.uint32)} if rounds_known else {}),
    )
    at = np.array([number[state[:-1]] if state else -1 for state in states])
    log_gradient = [turn - agent.chances[state[:-1]] if state else 0.0 for state, turn in zip(states, own, strict=True)]
    return Enumerated(forest, np.array(chance), at, np.array(log_gradient))


class Expected(NamedTuple):
    """An entry a state."""

    update: Floats
    weight: Floats
    """The sum of the weights of the draws there."""
    draws: Floats


def expected(agent: Agent, enumerated: Enumerated, estimator: str, options: dict[str, Any] | None = None) -> Expected:
    """By the core's scores; a forest that takes minutes in the reference takes milliseconds here."""
    return of_scores(agent, enumerated, enumerated.forest.score(estimator, options or {}))


def of_scores(agent: Agent, enumerated: Enumerated, scores: Scores) -> Expected:
    weight = scores.num_leaves.astype(np.float64) if scores.weight is None else scores.weight
    return summed(agent, enumerated, scores.advantage, weight)


def summed(agent: Agent, enumerated: Enumerated, advantage: Floats, weight: Floats) -> Expected:
    drawn = enumerated.at >= 0

    def total(column: Floats) -> Floats:
        parts = (enumerated.chance * column)[drawn]
        return np.bincount(enumerated.at[drawn], parts, minlength=len(agent.chances))

    ones = np.ones_like(weight)
    return Expected(total(weight * advantage * enumerated.log_gradient), total(weight), total(ones))


def cosine(a: Floats, b: Floats) -> float:
    """NaN where one of them is nothing."""
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths else np.nan
