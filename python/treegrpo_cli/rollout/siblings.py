"""A tree's turns as they are drawn -> which may be drawn from a node next: where siblings differ, one after the other.

The turns of a node have an order, that of rounds and draws, and each is drawn given those before it. So the first turns
of chains that start at one node in one round wait for each other to be sampled, and nothing depends on who was finished
first. Where less than `rollout.min_undrawn` is left, nothing is drawn again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from treegrpo_cli.types import Completion, DrawnTurn


@dataclass(slots=True)
class Place:
    """Of a chain among those that start at its node in its round."""

    before: asyncio.Event | None = None
    sampled: asyncio.Event = field(default_factory=asyncio.Event)
    """Its first turn is, or never will be."""


class Siblings:
    """The turns drawn below each node of one tree; `min_left` is None where siblings need not differ."""

    def __init__(self, min_left: float | None) -> None:
        self._min_left = min_left
        self._drawn: dict[int, tuple[DrawnTurn, ...]] = {}
        self._left: dict[int, float] = {}
        """Probability of the turns of a node that were not drawn there."""

    def places(self, nodes: Sequence[int]) -> list[Place]:
        """Give each of the chains that start at these nodes its place."""
        places: list[Place] = []
        last: dict[int, Place] = {}
        for node in nodes:
            before = last.get(node) if self._min_left is not None else None
            last[node] = Place(before.sampled if before else None)
            places.append(last[node])
        return places

    def drawn(self, node: int) -> tuple[DrawnTurn, ...]:
        """What is not to be drawn again below a node."""
        return self._drawn.get(node, ())

    def note(self, node: int, completion: Completion) -> None:
        """A turn was drawn below a node."""
        if self._min_left is not None:
            turn = DrawnTurn(tuple(completion.token_ids), tuple(completion.logprobs))
            self._drawn[node] = (*self.drawn(node), turn)
            self._left[node] = self._left.get(node, 1.0) - turn.chance

    def may_draw(self, node: int) -> bool:
        """Whether enough is left below a node."""
        return self._min_left is None or self._left.get(node, 1.0) >= self._min_left
