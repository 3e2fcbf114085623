"""In numpy: the estimators and the rule that merge equal states or follow continuations, with their defaults.

Token sequences become numbers, states are numbered level by level, and groups are sorted instead of looked up.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.numpy_trees import Columns, Floats, Ints, Trees, normalised, of_scored, spreads

KAPPA = 3.0
LEAST = 0.02
LARGEST = 2**62


def renumbered(number: Ints) -> Ints:
    return np.unique(number, return_inverse=True)[1]


def numbered(token_ids: Ints, start: Ints, size: Ints) -> Ints:
    """Equal sequences of tokens have equal numbers: tokens are digits, and sorted only where these would overflow."""
    base, bound, number = int(token_ids.max(initial=0)) + 2, 1, np.zeros(len(start), dtype=np.int64)
    padded = np.append(token_ids, 0)
    for place in range(int(size.max())):
        if bound > LARGEST // base:
            number = renumbered(number)
            bound = int(number.max()) + 1
        here = np.minimum(start + place, len(token_ids))
        number = number * base + np.where(place < size, padded[here] + 1, 0)
        bound *= base
    return renumbered(number)


class States:
    """Nodes of a prompt whose paths hold the same tokens lead to one state; a node is a draw at its parent's."""

    def __init__(self, trees: Trees) -> None:
        starts = trees.columns["token_start"].astype(np.int64)
        turn = numbered(trees.columns["token_ids"].astype(np.int64), starts[:-1], np.diff(starts))
        num_turns = int(turn.max()) + 1
        self.behind = np.zeros(len(turn), dtype=np.int64)
        prompts, self.behind[trees.root] = np.unique(trees.prompt[trees.root], return_inverse=True)
        self.num, self.above = len(prompts), [np.full(len(prompts), -1)]
        for nodes in trees.levels:
            drawn, state = np.unique(self.behind[trees.above[nodes]] * num_turns + turn[nodes], return_inverse=True)
            self.behind[nodes] = state + self.num
            self.num += len(drawn)
            self.above.append(drawn // num_turns)
        self.at = self.behind[trees.above]


def state_loo(trees: Trees) -> tuple[Floats, Floats]:
    states = States(trees)
    is_draw = ~trees.is_root & (trees.count > 0)
    draws = [nodes[is_draw[nodes]] for nodes in trees.levels]
    number = np.bincount(states.at[is_draw], minlength=states.num)
    value, total = trees.reward.copy(), np.zeros(states.num)
    for nodes in reversed(draws):
        inner = nodes[~trees.is_scored[nodes]]
        value[inner] = (total / np.maximum(number, 1))[states.behind[inner]]
        np.add.at(total, states.at[nodes], value[nodes])
    baseline, share = drawn_down(trees, states, draws, number, total, value)
    _, std, differs = spreads(trees.reward[trees.is_scored], trees.prompt[trees.is_scored])
    num_leaves = np.bincount(trees.prompt[trees.is_scored])
    advantage = np.where(differs[trees.prompt], (value - baseline) / std[trees.prompt], 0.0)
    return advantage, num_leaves[trees.prompt] * share


def drawn_down(
    trees: Trees, states: States, draws: list[Ints], number: Ints, total: Floats, value: Floats
) -> tuple[Floats, Floats]:
    """From the roots down: what each draw is measured from, and its share of those that reach its end."""
    baseline, share = np.full(len(value), np.nan), np.full(len(value), np.nan)
    reach, brought, arrived = np.zeros(states.num), np.zeros(states.num), np.zeros(states.num)
    reach[states.behind[trees.root]] = 1.0
    for level, nodes in enumerate(draws):
        at = states.at[nodes]
        others, num_others = total[at] - value[nodes], number[at] - 1
        if level:
            baseline[nodes] = (others + KAPPA * brought[at] / arrived[at]) / (num_others + KAPPA)
        else:
            baseline[nodes] = np.where(num_others > 0, others / np.maximum(num_others, 1), value[nodes])
        share[nodes] = reach[at] / number[at]
        inner = nodes[~trees.is_scored[nodes]]
        np.add.at(reach, states.behind[inner], share[inner])
        np.add.at(brought, states.behind[inner], baseline[inner])
        np.add.at(arrived, states.behind[inner], 1.0)
    return baseline, share


def causal(trees: Trees) -> tuple[Floats, Floats]:
    """All turns of a continuation have the credit of its first."""
    rounds = trees.columns["round"].astype(np.int64)
    node = np.arange(len(rounds))
    starts = ~trees.is_root & (trees.is_root[trees.above] | (rounds != rounds[trees.above]))
    first = node.copy()
    for nodes in trees.levels:
        first[nodes] = np.where(starts[nodes], nodes, first[trees.above[nodes]])
    reward = np.full(len(rounds), np.nan)
    reward[first[trees.is_scored]] = trees.reward[trees.is_scored]
    reward = reward[first]
    returned = np.flatnonzero(~np.isnan(reward) & ~trees.is_root)
    baseline = np.zeros(len(rounds))
    baseline[returned] = known_before(States(trees).at[returned], rounds[returned], reward[returned], starts[returned])
    advantage = np.where(np.isnan(reward), 0.0, reward - baseline[first])
    return advantage, (trees.is_root | ~np.isnan(reward)).astype(np.float64)


def known_before(at: Ints, rounds: Ints, reward: Floats, starts: NDArray[np.bool_]) -> Floats:
    """Mean reward of the draws at the same state in earlier rounds, and of the others that start there in the same."""
    order = np.lexsort((rounds, at))
    state, of_round = at[order], rounds[order]
    is_new = np.append(True, state[1:] != state[:-1])
    is_next = is_new | np.append(True, of_round[1:] != of_round[:-1])
    begin, group = np.flatnonzero(is_next), np.cumsum(is_next) - 1
    at_state = np.flatnonzero(is_new)[np.cumsum(is_new) - 1][begin]

    def known(of_draw: Floats) -> Floats:
        behind = np.append(0.0, np.cumsum(of_draw))
        return behind[begin] - behind[at_state] + np.bincount(group, np.where(starts[order], of_draw, 0.0))

    total, number = known(reward[order])[group] - reward[order], known(np.ones(len(order)))[group] - 1
    mean = np.empty(len(order))
    mean[order] = np.where(number > 0, total / np.maximum(number, 1), 0.0)
    return mean


def anchor(trees: Trees) -> Floats:
    """`grpo`, and turns against those of equal keys or, where there is none, behind equal observations."""
    columns, ends = trees.columns, trees.columns["token_start"].astype(np.int64)
    last = np.append(0, np.maximum.accumulate(np.where(columns["sampled"], np.arange(ends[-1]) + 1, 0)))
    start = np.maximum(last[ends[1:]], ends[:-1])
    observed = numbered(columns["token_ids"].astype(np.int64), start, ends[1:] - start)[trees.above]
    key = np.where(columns["state_key"] != 0, len(observed) + renumbered(columns["state_key"]), observed)
    turns = np.flatnonzero(~trees.is_root & (trees.count > 0))
    group = renumbered((trees.prompt * (key.max() + 1) + key)[turns])
    advantage = trees.shown(np.where(trees.is_scored, of_scored(trees, trees.prompt), 0.0))
    advantage[turns] += normalised(trees.value[turns], group, scaled=True)
    return advantage


def contrast(columns: Columns) -> Floats:
    """With the defaults q is 1/2 above the roots and counts as one leaf."""
    trees = Trees(columns)
    states = States(trees)
    scored = trees.is_scored
    low, high = np.zeros(trees.prompt.max() + 1), np.ones(trees.prompt.max() + 1)
    np.minimum.at(low, trees.prompt[scored], trees.reward[scored])
    np.maximum.at(high, trees.prompt[scored], trees.reward[scored])
    scaled = (trees.reward - low[trees.prompt])[scored] / (high - low)[trees.prompt][scored]
    total = np.bincount(states.behind[scored], scaled, states.num)
    number = np.bincount(states.behind[scored], minlength=states.num)
    bounds = np.cumsum([0, *map(len, states.above)])
    levels = [slice(start, end) for start, end in pairwise(bounds[1:])]
    for level, above in zip(reversed(levels), reversed(states.above[1:]), strict=True):
        np.add.at(total, above, total[level])
        np.add.at(number, above, number[level])
    q = (total + 0.5) / (number + 1)
    for level, above in zip(levels, states.above[1:], strict=True):
        q[level] = (total[level] + q[above]) / (number[level] + 1)
    return np.asarray((q * (1 - q) * (residuals(trees, states) + LEAST))[states.behind])


def residuals(trees: Trees, states: States) -> Floats:
    """What the different turns sampled at each state leave of its probability."""
    sampled = trees.columns["sampled"]
    starts = np.append(0, np.cumsum(sampled))[trees.columns["token_start"].astype(np.int64)]
    size = np.diff(starts)
    logprobs = trees.columns["logprobs"][sampled].astype(np.float64)
    chance = np.exp(np.bincount(np.repeat(np.arange(len(size)), size), logprobs, len(size)))
    drawn = np.flatnonzero(~trees.is_root & (size > 0))
    tokens = trees.columns["token_ids"][sampled].astype(np.int64)
    turn = numbered(tokens, starts[:-1][drawn], size[drawn])
    different, turn = np.unique(states.at[drawn] * (turn.max() + 1) + turn, return_inverse=True)
    likeliest, at = np.zeros(len(different)), np.zeros(len(different), dtype=np.int64)
    np.maximum.at(likeliest, turn, chance[drawn])
    at[turn] = states.at[drawn]
    return np.clip(1.0 - np.bincount(at, likeliest, states.num), 0.0, 1.0)
