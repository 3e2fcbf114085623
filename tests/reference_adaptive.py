"""`causal` and `state-loo` the naive way, written from the definitions and kept for ever.

Trees are those of `tests.reference`; a node has a `round` besides. A state is what a turn is sampled from: the turns
above it, each as its token ids, and () at every root of a prompt. A node is a draw at the state of its parent.
"""

import math
from typing import Any

from tests.reference import FLAT, Node, Tree, mean, scored_leaves, std, walk

State = tuple[tuple[int, ...], ...]
Shown = dict[int, dict[str, float | None]]


def states(trees: list[Tree]) -> dict[int, State]:
    """The state behind each node of one prompt's trees."""
    behind: dict[int, State] = {}

    def visit(node: Node, state: State) -> None:
        behind[id(node)] = state
        for child in node["children"]:
            visit(child, (*state, tuple(token for token, *_ in child["tokens"])))

    for tree in trees:
        visit(tree["root"], ())
    return behind


def divisor(trees: list[Tree], options: dict[str, Any]) -> float:
    """What advantages are divided by; infinite where the prompt's rewards are equal and their spread divides."""
    if options["scale"] == "none":
        return 1.0
    if options["scale"] != "std":
        return float(options["scale"])
    rewards = [leaf["reward"] for tree in trees for leaf in scored_leaves(tree["root"])]
    if len(rewards) < 2 or max(rewards) - min(rewards) <= FLAT:
        return math.inf
    return std(rewards, options["ddof"]) + options["eps"]


class Continuation:
    """What one expansion, or one first chain, drew: turns of one round, each below the last."""

    def __init__(self, start: State, first: Node, behind: dict[int, State]) -> None:
        self.round = first["round"]
        self.turns = [first]
        while below := [child for child in self.turns[-1]["children"] if child["round"] == self.round]:
            (child,) = below
            self.turns.append(child)
        self.at = [start, *(behind[id(turn)] for turn in self.turns[:-1])]
        self.leads_to = [behind[id(turn)] for turn in self.turns if turn["children"]]
        self.reward = self.turns[-1]["reward"]


def continuations(trees: list[Tree], behind: dict[int, State]) -> list[Continuation]:
    found = []
    for tree in trees:
        for node in walk(tree["root"]):
            for child in node["children"]:
                if node is tree["root"] or child["round"] != node["round"]:
                    found.append(Continuation(behind[id(node)], child, behind))
    return found


def causal(trees: list[Tree], options: dict[str, Any]) -> Shown:
    """One prompt's trees; every draw of a continuation has its return and its baseline."""
    behind = states(trees)
    found = continuations(trees, behind)
    num_leaves = sum(len(scored_leaves(tree["root"])) for tree in trees)
    shown: Shown = {}
    for own in found:
        start = own.at[0]
        before = [
            other.reward
            for other in found
            if other is not own and other.reward is not None
            if (other.round < own.round and start in other.at) or (other.round == own.round and other.at[0] == start)
        ]
        baseline = mean(before) if before else 0.0
        for turn, state in zip(own.turns, own.at, strict=True):
            weight = 1.0 if options["weight"] == "one" else num_leaves * _known_share(own, state, found)
            credit = 0.0 if own.reward is None else (own.reward - baseline) / divisor(trees, options)
            shown[id(turn)] = {"advantage": credit, "weight": 0.0 if own.reward is None else weight}
    for tree in trees:
        for node in walk(tree["root"]):
            rewards = [leaf["reward"] for leaf in scored_leaves(node)]
            shown.setdefault(id(node), {})["value"] = mean(rewards) if rewards else None
    return shown


def _known_share(own: Continuation, state: State, found: list[Continuation]) -> float:
    """The share of one draw at `state`, by what is known before it is made.

    Known are the draws of earlier rounds, how many start where this continuation does in its round, and its own turns.
    """

    def draws(at: State) -> int:
        earlier = sum(at in other.at for other in found if other.round < own.round)
        same = sum(other.at[0] == at for other in found if other.round == own.round)
        return earlier + (same if at == own.at[0] else int(at in own.at))

    def leading(to: State) -> int:
        earlier = sum(to in other.leads_to for other in found if other.round < own.round)
        return earlier + int(to in own.at[1:])

    share = 1.0 / draws(state)
    for length in range(len(state)):
        share *= leading(state[: length + 1]) / draws(state[:length])
    return share


class Family:
    """Siblings in the order in which they were drawn, and what each is an estimate of the mean over turns with.

    Alone, a draw is an estimate by itself. Drawn without replacement, the i-th estimates the turns before it by their
    known chances and the rest of the mass by itself: it is unbiased given those before it.
    """

    def __init__(self, siblings: list[Node]) -> None:
        self.draws: list[Node] = []
        self.parts: list[list[float]] = []
        chances: list[float] = []
        gone = 0.0
        for sibling in siblings:
            own = math.exp(math.fsum(logprob for _, sampled, logprob in sibling["tokens"] if sampled))
            if scored_leaves(sibling):
                row = [*chances, max(0.0, 1.0 - gone)]
                total = math.fsum(row)
                self.draws.append(sibling)
                self.parts.append([x / total for x in row] if total else [0.0] * len(chances) + [1.0])
                chances.append(own)
            gone += own

    def estimates(self, values: list[float]) -> list[float]:
        return [math.fsum(c * v for c, v in zip(row, values, strict=False)) for row in self.parts]

    def counts(self, place: int) -> list[float]:
        """How much a draw counts in each of the family's estimates."""
        return [row[place] if place < len(row) else 0.0 for row in self.parts]


def families_of(trees: list[Tree], behind: dict[int, State], distinct: bool) -> dict[State, list[Family]]:
    """The families at each state where a turn with a scored leaf below was drawn."""
    found: dict[State, list[Family]] = {}
    for tree in trees:
        for node in walk(tree["root"]):
            drawn = sorted(node["children"], key=lambda child: child["round"])
            for siblings in [drawn] if distinct else [[child] for child in drawn]:
                family = Family(siblings)
                if family.draws:
                    found.setdefault(behind[id(node)], []).append(family)
    return found


def state_loo(trees: list[Tree], options: dict[str, Any]) -> Shown:
    """One prompt's trees; only draws with a scored leaf below count."""
    behind = states(trees)
    families = families_of(trees, behind, options["siblings"] == "distinct")
    values: dict[State, float] = {}

    def value_of(draw: Node) -> float:
        if draw["reward"] is not None:
            return float(draw["reward"])
        state = behind[id(draw)]
        if state not in values:
            values[state] = mean(estimates_at(state))
        return values[state]

    def estimates_of(family: Family) -> list[float]:
        return family.estimates([value_of(draw) for draw in family.draws])

    def estimates_at(state: State) -> list[float]:
        return [x for family in families[state] for x in estimates_of(family)]

    num_leaves = sum(len(scored_leaves(tree["root"])) for tree in trees)
    shown: Shown = {}
    reach: dict[State, float] = {(): 1.0}
    inherited: dict[State, list[float]] = {}
    for state in sorted(families, key=len):
        above = mean(inherited[state]) if state else None
        number = len(estimates_at(state))
        for family in families[state]:
            elsewhere = [x for other in families[state] if other is not family for x in estimates_of(other)]
            own = estimates_of(family)
            baselines = [
                baseline_of([*elsewhere, *own[:place]], above, options["kappa"], own[place])
                for place in range(len(own))
            ]
            for place, draw in enumerate(family.draws):
                counts = family.counts(place)
                total = math.fsum(counts)
                below = math.fsum(c * b for c, b in zip(counts, baselines, strict=True))
                baseline = below / total if total else baselines[place]
                share = reach[state] * total / number
                advantage = (value_of(draw) - baseline) / divisor(trees, options)
                shown[id(draw)] = {"advantage": advantage, "weight": num_leaves * share}
                if draw["reward"] is None:
                    reach[behind[id(draw)]] = reach.get(behind[id(draw)], 0.0) + share
                    inherited.setdefault(behind[id(draw)], []).append(baseline)
    for tree in trees:
        for node in walk(tree["root"]):
            if scored_leaves(node):
                shown.setdefault(id(node), {})["value"] = value_of(node)
    return shown


def baseline_of(others: list[float], above: float | None, kappa: float, own: float) -> float:
    """The mean of the other estimates, below the root drawn to the baseline above; where there is nothing, its own."""
    if above is None:
        return mean(others) if others else own
    if not others and kappa == 0:
        return above
    return (math.fsum(others) + kappa * above) / (len(others) + kappa)
