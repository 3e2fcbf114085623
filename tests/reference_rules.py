"""Which node to expand, the slow way: dicts, recursion and lists of Python floats, straight from the definitions.

Nodes are those of `tests.reference`. A token's entropy is that of `token_entropy`; a node's is its own field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.reference import Node, Tree

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


@dataclass(frozen=True, eq=False)
class Place:
    """A node with what is above it; `path`: the tokens of each turn down to it."""

    node: Node
    above: Place | None
    tree: int
    prompt: int
    path: tuple[tuple[int, ...], ...]

    @property
    def children(self) -> list[Place]:
        return list(_children(self))

    @property
    def rewards(self) -> list[float]:
        """Of the scored leaves below, its own included."""
        own = [] if self.node["reward"] is None else [self.node["reward"]]
        return own + [reward for child in self.children for reward in child.rewards]

    @property
    def root(self) -> Place:
        return self if self.above is None else self.above.root


def _children(place: Place) -> Iterator[Place]:
    for child in place.node["children"]:
        turn = tuple(token for token, _, _ in child["tokens"])
        yield Place(child, place, place.tree, place.prompt, (*place.path, turn))


def places(forest: Sequence[Tree]) -> list[Place]:
    """All nodes of all trees; the tokens of the prompt are no part of a path."""

    def walk(place: Place) -> Iterator[Place]:
        yield place
        for child in place.children:
            yield from walk(child)

    roots = [Place(tree["root"], None, number, tree["prompt"], ()) for number, tree in enumerate(forest)]
    return [place for root in roots for place in walk(root)]


def token_entropy(token: int) -> float:
    """What `tests.forests` gives each sampled token."""
    return float(token % 4)


def node_confidence(node: Node) -> float:
    """What `tests.forests` gives each node."""
    return -float(node["entropy"])


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def sampled(node: Node) -> list[tuple[int, float]]:
    return [(token, logprob) for token, is_sampled, logprob in node["tokens"] if is_sampled]


def entropy_of(place: Place, first_tokens: int) -> float | None:
    if not first_tokens:
        return float(place.node["entropy"])
    turn = sampled(place.node)[:first_tokens]
    return mean([token_entropy(token) for token, _ in turn]) if turn else None


def surprisal_of(place: Place, first_tokens: int) -> float | None:
    turn = sampled(place.node)
    turn = turn[:first_tokens] if first_tokens else turn
    return mean([-logprob for _, logprob in turn]) if turn else None


def confidence_of(place: Place, window: int) -> float:
    logprobs = [logprob for _, logprob in sampled(place.node)]
    if not logprobs:
        return node_confidence(place.node)
    starts = range(max(1, len(logprobs) - window + 1))
    return min(mean(logprobs[start : start + window]) for start in starts)


def below(place: Place, quantity: Callable[[Place], float | None]) -> float:
    """Mean over the children that have it."""
    return mean([known for known in map(quantity, place.children) if known is not None])


def value(place: Place) -> float:
    """Mean reward below; where nothing is scored, that of the nearest node above where something is."""
    if place.rewards:
        return mean(place.rewards)
    return 0.0 if place.above is None else value(place.above)


def undecided(place: Place, of_turn: Any, options: dict[str, Any]) -> float:
    turns = below(place, lambda child: of_turn(child, options["first_tokens"]))
    return turns - float(options["alpha"]) * (len(place.children) - 1)


def bernoulli(place: Place, options: dict[str, Any]) -> float:
    rise = below(place, lambda child: entropy_of(child, 0)) - below(place.root, lambda child: entropy_of(child, 0))
    return min(1.0, max(0.0, float(options["p0"] + options["w"] * rise)))


def uct(place: Place, options: dict[str, Any]) -> float:
    leaves = max(1, len(place.rewards))
    above = 2 * leaves if place.above is None else max(1, len(place.above.rewards))
    return value(place) + float(options["c"]) * math.sqrt(math.log(above) / leaves)


def puct(place: Place, candidates: Sequence[Place], options: dict[str, Any]) -> float:
    def likelihood(other: Place) -> float:
        surprisal = 0.0 if other.above is None else surprisal_of(other, 0)
        assert surprisal is not None
        return math.exp(-surprisal)

    prior = likelihood(place) / math.fsum(likelihood(other) for other in candidates if other.tree == place.tree)
    visits = math.sqrt(len(place.root.rewards)) / (1 + len(place.rewards))
    return value(place) + float(options["c"]) * prior * visits


def contrast(place: Place, everywhere: Sequence[Place], options: dict[str, Any], known: dict[str, Any]) -> float:
    same_prompt = [other for other in everywhere if other.prompt == place.prompt]
    rewards = [other.node["reward"] for other in same_prompt if other.node["reward"] is not None]
    low, high = known.get("reward_range") or (min([0.0, *rewards]), max([1.0, *rewards]))

    def outcome(path: tuple[tuple[int, ...], ...] | None) -> float:
        if path is None:
            return float(known.get("prior", 0.5))
        found = [reward for other in same_prompt if other.path == path for reward in other.rewards]
        scaled = [min(1.0, max(0.0, (reward - low) / (high - low))) for reward in found]
        weight = len(scaled) + options["kappa"]
        before = outcome(path[:-1] if path else None)
        return float((math.fsum(scaled) + options["kappa"] * before) / weight) if weight else before

    drawn: dict[tuple[int, ...], float] = {}
    for child in (child for other in same_prompt if other.path == place.path for child in other.children):
        turn = sampled(child.node)
        if turn:
            tokens = tuple(token for token, _ in turn)
            chance = math.exp(math.fsum(logprob for _, logprob in turn))
            drawn[tokens] = max(drawn.get(tokens, 0.0), chance)
    residual = min(1.0, max(0.0, 1 - math.fsum(drawn.values())))
    q = outcome(place.path)
    return q * (1 - q) * (residual + 0.02)


def scores(
    forest: Sequence[Tree], candidates: Sequence[Place], rule: str, options: dict[str, Any], **known: Any
) -> list[float]:
    """The score of each candidate, or its chance."""
    everywhere = places(forest)
    of: dict[str, Callable[[Place], float]] = {
        "uniform": lambda place: 1.0,
        "entropy": lambda place: undecided(place, entropy_of, options),
        "surprisal": lambda place: undecided(place, surprisal_of, options),
        "bernoulli": lambda place: bernoulli(place, options),
        "uct": lambda place: uct(place, options),
        "puct": lambda place: puct(place, candidates, options),
        "contrast": lambda place: contrast(place, everywhere, options, known),
        "confidence": lambda place: -below(place, lambda child: confidence_of(child, options["window"])),
    }
    return [of[rule](place) for place in candidates]


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def splitmix(purpose: int, key: Sequence[int], count: int) -> list[int]:
    """SplitMix64 from its definition, started from the key's parts one after the other."""
    state = mix(purpose + GAMMA & MASK) + len(key) & MASK
    for part in key:
        state = mix((state + GAMMA & MASK) ^ mix(part & MASK))
    return [mix(state + step * GAMMA & MASK) for step in range(1, count + 1)]


def unit(bits: int) -> float:
    return (bits >> 11) / 2**53


def draw_by_scores(
    scores: Sequence[float], n: int, key: Sequence[int], temperature: float = 0.0, replacement: bool = False
) -> list[int]:
    """Finite scores and -inf; at least one is finite."""
    highest = max(scores)
    if replacement:
        weights = [math.exp((score - highest) / temperature) for score in scores]
        total, drawn = sum(weights), []
        for bits in splitmix(4, key, n):
            at = unit(bits) * total
            drawn.append(next(place for place in range(len(scores)) if sum(weights[: place + 1]) > at))
        return drawn
    bits = splitmix(4, key, len(scores))
    ranks = [
        (score / temperature - math.log(-math.log(unit(own) + 2**-54)) if temperature else score, own)
        for score, own in zip(scores, bits, strict=True)
    ]
    live = [place for place, score in enumerate(scores) if score != -math.inf]
    return sorted(live, key=lambda place: ranks[place], reverse=True)[:n]


def draw_each(chances: Sequence[float], n: int, key: Sequence[int]) -> list[int]:
    drawn = [unit(bits) < chance for chance, bits in zip(chances, splitmix(5, key, len(chances)), strict=True)]
    left = [chance if is_drawn else -math.inf for chance, is_drawn in zip(chances, drawn, strict=True)]
    return draw_by_scores(left, n, key) if any(drawn) else []
