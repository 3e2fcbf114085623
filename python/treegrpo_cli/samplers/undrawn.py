"""Turns drawn from a state before -> how the distributions of the next draw change, so that it is none of them.

A turn is drawn from p, given that it differs from the turns before: at each token

    p(t | prefix) · (1 - m(prefix + t)) / (1 - m(prefix))

m(x) is the probability, given x, that the turn goes on into one of those. It is known from their log-probabilities,
and is 0 away from their tokens: only logits on their paths change, by log(1 - m), behind temperature, top-k and top-p.
Where a turn ends (end token, stop string, token limit) follows from its tokens, so that none begins another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from treegrpo_cli.types import DrawnTurn

ROUNDING = 1e-6
"""Of chances whose logarithms are float32: less than this is not told from nothing."""


class Undrawn:
    """Where a turn stands on the paths of those before it, while its tokens are drawn."""

    def __init__(self, turns: Sequence[DrawnTurn]) -> None:
        self._children: list[dict[int, int]] = [{}]
        chances = [1.0]
        for turn in turns:
            at = 0
            for token, logprob in zip(turn.token_ids, turn.logprobs, strict=True):
                if token not in self._children[at]:
                    self._children[at][token] = len(chances)
                    self._children.append({})
                    chances.append(math.exp(logprob))
                at = self._children[at][token]
        self._left = _left(self._children, chances)
        self._at: int | None = 0

    def changes(self) -> tuple[list[int], list[float]]:
        """The tokens whose logits change at the next draw, and what is added to them; nothing away from all paths."""
        children = {} if self._at is None else self._children[self._at]
        added = [math.log(self._left[child]) if self._left[child] > 0 else -math.inf for child in children.values()]
        return list(children), added

    def advance(self, token: int) -> None:
        """Go on with the token that was drawn."""
        if self._at is not None:
            self._at = self._children[self._at].get(token)


def without_drawn(logits: torch.Tensor, undrawn: Sequence[Undrawn | None]) -> torch.Tensor:
    """Return the logits [B, V] to draw from, an entry of `undrawn` a row; the same tensor where nothing changes.

    >>> turn = DrawnTurn((0,), (math.log(0.5),))
    >>> without_drawn(torch.zeros(1, 2), [Undrawn([turn])]).tolist()
    [[-inf, 0.0]]
    """
    changed = [(row, *each.changes()) for row, each in enumerate(undrawn) if each is not None]
    changed = [(row, tokens, added) for row, tokens, added in changed if tokens]
    if not changed:
        return logits
    logits = logits.clone()
    for row, tokens, added in changed:
        logits[row, tokens] += torch.tensor(added, dtype=logits.dtype, device=logits.device)
    return logits


def _left(children: Sequence[dict[int, int]], chances: Sequence[float]) -> list[float]:
    """Return 1 - m of every place; children have higher numbers. A path's end has nothing left."""
    left = [0.0] * len(chances)
    for place in reversed(range(len(chances))):
        if below := children[place].values():
            mass = math.fsum(chances[child] * (1.0 - left[child]) for child in below)
            left[place] = 1.0 - mass if mass < 1.0 - ROUNDING else 0.0
    return left
