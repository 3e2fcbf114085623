"""Small tabular agents, and every outcome of a procedure that grows trees of them, each with its probability.

An agent's turns are 0 or 1. A prompt's trees are grown as a rollout grows them: M first chains, then in each round N
nodes of each tree, by a rule that may look at what all trees hold so far; a chain is drawn from each. A reward comes
where the last turn closes the branch.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

State = tuple[int, ...]
"""What a turn is drawn from: the turns above it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agent:
    """A policy, as the chance of turn 1 at each state, and the reward of each whole path."""

    chances: dict[State, float]
    rewards: dict[State, float]

    def chance(self, state: State, turn: int) -> float:
        return self.chances[state] if turn else 1 - self.chances[state]

    def value(self, state: State) -> float:
        if state in self.rewards:
            return self.rewards[state]
        return math.fsum(self.chance(state, turn) * self.value((*state, turn)) for turn in (0, 1))

    def reached(self, state: State) -> float:
        """The probability that a chain comes by."""
        return math.prod(self.chance(state[:length], turn) for length, turn in enumerate(state))

    def gradient(self, state: State) -> float:
        """Of the value of a state, by the logit of turn 1 there."""
        chance = self.chances[state]
        return chance * (1 - chance) * (self.value((*state, 1)) - self.value((*state, 0)))

    def policy_gradient(self) -> Floats:
        """What chains are drawn to estimate, an entry a state."""
        return np.array([self.reached(state) * self.gradient(state) for state in self.chances])

    def chains(self, state: State) -> Iterator[tuple[State, float]]:
        """Every path from a state to an end, with its probability."""
        if state in self.rewards:
            yield state, 1.0
            return
        for turn in (0, 1):
            for path, chance in self.chains((*state, turn)):
                yield path, chance * self.chance(state, turn)


def agent(chances: list[float], rewards: list[float]) -> Agent:
    """Chances state by state and rewards end by end: shorter ones first, then in the order of their turns."""
    depth = len(rewards).bit_length() - 1
    at = [state for length in range(depth) for state in itertools.product((0, 1), repeat=length)]
    ends = list(itertools.product((0, 1), repeat=depth))
    return Agent(dict(zip(at, chances, strict=True)), dict(zip(ends, rewards, strict=True)))


class Turn(NamedTuple):
    """A node of a tree: the place of its parent in the tree's list (-1: the root), its state behind, its round."""

    parent: int
    state: State
    round: int


Tree = tuple[Turn, ...]
Trees = tuple[Tree, ...]
Outcomes = dict[Trees, float]

Rule = Callable[[Agent, Trees, Tree], dict[int, float]]
"""(agent, all trees of the prompt, one of them) -> the chance of each of its nodes to be drawn; -1 is the root.

Empty: the tree is not expanded in this round."""


def grown(tree: Tree, start: int, path: State, round_: int) -> Tree:
    """A tree with one more continuation, from the node `start` to the end of `path`."""
    depth = len(tree[start].state) if start >= 0 else 0
    turns = list(tree)
    for length in range(depth + 1, len(path) + 1):
        turns.append(Turn(start, path[:length], round_))
        start = len(turns) - 1
    return tuple(turns)


def expansions(
    agent: Agent, tree: Tree, rule: dict[int, float], draws: int, round_: int
) -> Iterator[tuple[Tree, float]]:
    """Every outcome of one round of one tree: its nodes are chosen at once, by what was there before."""
    if not rule:
        yield tree, 1.0
        return
    for starts in itertools.product(rule, repeat=draws):
        chosen = math.prod(rule[start] for start in starts)
        paths = [list(agent.chains(tree[start].state if start >= 0 else ())) for start in starts]
        for outcome in itertools.product(*paths):
            after = tree
            for start, (path, _) in sorted(zip(starts, outcome, strict=True)):
                after = grown(after, start, path, round_)
            yield after, chosen * math.prod(chance for _, chance in outcome)


def merged(outcomes: Iterator[tuple[Trees, float]]) -> Outcomes:
    """The same trees are one outcome, whatever their order and that of their draws."""
    total: Outcomes = {}
    for trees, chance in outcomes:
        key = tuple(sorted(trees))
        total[key] = total.get(key, 0.0) + chance
    return total


def outcomes(agent: Agent, rule: Rule, num_trees: int, draws: int, rounds: int = 1) -> Outcomes:
    """All that a prompt's trees can become, with probabilities that add up to 1."""
    chains = [(grown((), -1, path, 0), chance) for path, chance in agent.chains(())]
    now = merged(
        (tuple(tree for tree, _ in first), math.prod(chance for _, chance in first))
        for first in itertools.product(chains, repeat=num_trees)
    )
    for round_ in range(1, rounds + 1):
        now = merged(_expanded(agent, rule, now, draws, round_))
    return now


def _expanded(agent: Agent, rule: Rule, now: Outcomes, draws: int, round_: int) -> Iterator[tuple[Trees, float]]:
    for trees, chance in now.items():
        each = [
            merged(((after,), p) for after, p in expansions(agent, tree, rule(agent, trees, tree), draws, round_))
            for tree in trees
        ]
        for parts in itertools.product(*(part.items() for part in each)):
            yield tuple(tree for (tree,), _ in parts), chance * math.prod(p for _, p in parts)


def inner(agent: Agent, tree: Tree) -> list[int]:
    """What can be expanded: the root, and the turns that the agent went on from."""
    return [-1, *(place for place, turn in enumerate(tree) if turn.state not in agent.rewards)]


def rewards_below(agent: Agent, trees: Trees, state: State) -> list[float]:
    """Of the ends drawn so far in all trees that begin with these turns."""
    ends = [turn.state for tree in trees for turn in tree if turn.state in agent.rewards]
    return [agent.rewards[end] for end in ends if end[: len(state)] == state]


def proportional(scores: dict[int, float]) -> dict[int, float]:
    total = math.fsum(scores.values())
    return {place: score / total for place, score in scores.items() if score > 0}


def uniform(agent: Agent, trees: Trees, tree: Tree) -> dict[int, float]:
    return proportional(dict.fromkeys(inner(agent, tree), 1.0))


def led_by_outcomes(agent: Agent, trees: Trees, tree: Tree) -> dict[int, float]:
    """Where outcomes are likeliest to disagree: q(1 - q) + 0.02, q the smoothed mean reward below."""

    def score(place: int) -> float:
        below = rewards_below(agent, trees, tree[place].state if place >= 0 else ())
        q = (math.fsum(below) + 0.5) / (len(below) + 1)
        return q * (1 - q) + 0.02

    return proportional({place: score(place) for place in inner(agent, tree)})


def failures_alone(agent: Agent, trees: Trees, tree: Tree) -> dict[int, float]:
    """Nodes of this tree below which no reward came yet; a tree without one is not expanded."""

    def failed(place: int) -> bool:
        return not any(rewards_below(agent, (tree,), tree[place].state if place >= 0 else ()))

    return proportional({place: float(failed(place)) for place in inner(agent, tree)})


RULES: dict[str, Rule] = {"uniform": uniform, "outcomes": led_by_outcomes, "failures": failures_alone}
