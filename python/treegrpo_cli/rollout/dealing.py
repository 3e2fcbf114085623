"""Expansions of a wave + weights of prompts -> how many each prompt gets.

    shares in proportion to the weights, none above its prompt's room, what is cut going to the others
    whole numbers by one keyed draw: each share is rounded down or up, and all together stay what they were

Prompts without weight get what is left when all others are full, each alike. Pure in its arguments: who was finished
first has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import floor

from treegrpo_cli._core import derive_seed

FULL = 1e-9
"""A share that comes so near to the room fills it: float64 does not tell them apart."""


def deal(num: int, weights: Sequence[float], room: Sequence[int], key: Sequence[int]) -> list[int]:
    """Deal `num` expansions over prompts; fewer where there is no room for more.

    `weights` are 0 or more, `room` is how many a prompt takes at most.

    >>> deal(6, [2.0, 1.0, 0.0], [9, 9, 9], [7])
    [4, 2, 0]
    >>> deal(6, [2.0, 1.0, 0.0], [1, 9, 9], [7])
    [1, 5, 0]
    """
    dealt = [0] * len(weights)
    for chosen in ([weight > 0 for weight in weights], [weight <= 0 for weight in weights]):
        places = [place for place, is_chosen in enumerate(chosen) if is_chosen and room[place] > 0]
        left = min(num - sum(dealt), sum(room[place] for place in places))
        shares = _shares(left, [weights[place] or 1.0 for place in places], [room[place] for place in places])
        for place, count in zip(places, _rounded(shares, left, key), strict=True):
            dealt[place] = count
    return dealt


def _shares(num: int, weights: Sequence[float], room: Sequence[int]) -> list[float]:
    """Split `num`, for which there is room, in proportion to the weights, but for those that are full."""
    shares = [float(most) for most in room]
    left, total = float(num), sum(weights)
    for place in sorted(range(len(weights)), key=lambda place: room[place] / weights[place]):
        share = left * weights[place] / total if total > 0 else 0.0
        shares[place] = min(share, shares[place]) if share < shares[place] - FULL else shares[place]
        left, total = left - shares[place], total - weights[place]
    return shares


def _rounded(shares: Sequence[float], num: int, key: Sequence[int]) -> list[int]:
    """Round shares that sum to `num` down or up, so that whole numbers do: one offset for all, drawn by the key."""
    whole = [floor(share + FULL) if abs(share - round(share)) < FULL else None for share in shares]
    broken = [share for share, count in zip(shares, whole, strict=True) if count is None]
    left = num - sum(count for count in whole if count is not None)
    offset = derive_seed(key) / 2**63
    ends = [*accumulate(broken, initial=0.0)]
    ends[-1] = float(left)
    marks = iter([floor(high + offset) - floor(low + offset) for low, high in pairwise(ends)])
    return [next(marks) if count is None else count for count in whole]
