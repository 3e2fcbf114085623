"""Prompts -> groups of trees that grow together, wave by wave: expansions are dealt across the prompts.

    the first chains of all trees
    L waves: the rewards of all leaves so far; N·M·P expansions dealt to the P prompts; their chains, side by side
    rewards of all that is left

A wave is a round of each tree that it expands. It starts when the one before it has ended everywhere, so what it knows,
and which turns are sampled side by side, does not depend on who was finished first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from treegrpo_cli.rollout.collect import Grown
from treegrpo_cli.rollout.dealing import deal
from treegrpo_cli.rollout.disagreement import disagreement
from treegrpo_cli.rollout.failures import Failure, PromptError
from treegrpo_cli.rollout.grove import Grove
from treegrpo_cli.rollout.schedule import side_by_side

if TYPE_CHECKING:
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.rollout.step_budget import StepBudget
    from treegrpo_cli.rollout.tree import Prompt


async def grow_in_waves(
    player: Player, prompts: Sequence[Prompt], budget: StepBudget, on_grown: Callable[[Grown], None] = lambda _: None
) -> list[Grown]:
    """Grow these prompts' groups; `on_grown` sees them in their order when all have ended."""
    waves = Waves(player, prompts, budget)
    try:
        await waves.grow()
    finally:
        await waves.close()
    groups = waves.groups()
    for grown in groups:
        on_grown(grown)
    return groups


class Waves:
    """The groves of some prompts while they grow."""

    def __init__(self, player: Player, prompts: Sequence[Prompt], budget: StepBudget) -> None:
        self.player, self.budget, self.rollout = player, budget, player.config.rollout
        self.groves = [Grove(player, prompt, range(self.rollout.num_trees)) for prompt in prompts]
        self.failures: dict[int, Failure] = {}
        """Of prompts that nothing grows from, by their place."""
        self._room = asyncio.Semaphore(max(self.rollout.max_live_trees // self.rollout.num_trees, 1))
        budget.watch(self.groves)

    async def grow(self) -> None:
        """Grow all groups to their end."""
        await self.player.world.check()
        await self._each(range(len(self.groves)), self._start)
        for wave in range(1, self.rollout.num_rounds + 1):
            if self.budget.is_reached() or not await self._expand_all(wave):
                break
        await self._each(self._open, lambda place: self.groves[place].finish())

    async def close(self) -> None:
        """Close what the environment opened."""
        for grove in self.groves:
            await grove.close()

    def groups(self) -> list[Grown]:
        """What has grown, in the order of the prompts."""
        return [self._group(place, grove) for place, grove in enumerate(self.groves)]

    def _group(self, place: int, grove: Grove) -> Grown:
        if place in self.failures:
            return Grown(grove.prompt, [], [self.failures[place]], grove.seconds)
        failures = [failure for tree in grove.trees for failure in tree.failures]
        return Grown(grove.prompt, grove.trees, failures, grove.seconds)

    @property
    def _open(self) -> list[int]:
        """Places of the prompts that grow."""
        return [place for place in range(len(self.groves)) if place not in self.failures]

    async def _start(self, place: int) -> None:
        try:
            await self.groves[place].plant()
        except PromptError as error:
            prompt_id = self.groves[place].prompt.prompt_id
            self.failures[place] = Failure(error.kind, prompt_id, error.reason, error.tree_id, error.trace)
            return
        await self.groves[place].first_chains()

    async def _dealt(self, wave: int) -> list[int]:
        """How many expansions of this wave each prompt gets."""
        places, uneven = self._open, self.rollout.allocation == "uncertain"
        a_prompt = self.rollout.num_trees * self.rollout.num_expansions
        planned = len(places) * a_prompt
        if uneven:
            await self._each(places, lambda place: self.groves[place].score_closed())
        weights = [self._weight(self.groves[place]) if uneven else 1.0 for place in places]
        room = [self.groves[place].room(planned if uneven else self.rollout.num_expansions) for place in places]
        key = [self.player.config.seed, self.groves[0].prompt.number, wave, DEAL]
        dealt = dict(zip(places, deal(min(planned, self.budget.leaves_left()), weights, room, key), strict=True))
        return [dealt.get(place, 0) for place in range(len(self.groves))]

    def _weight(self, grove: Grove) -> float:
        return disagreement(grove.known_rewards(), self.player.rewards_so_far, self.rollout.allocation_kappa)

    async def _expand_all(self, wave: int) -> bool:
        """Run a wave; False where no prompt takes any of it."""
        dealt = await self._dealt(wave)
        await self._each(
            [place for place, num in enumerate(dealt) if num], lambda place: self._expand(place, dealt[place], wave)
        )
        return any(dealt)

    async def _expand(self, place: int, num: int, wave: int) -> None:
        grove, num_trees = self.groves[place], self.rollout.num_trees
        if self.rollout.allocation == "uncertain":
            await grove.expand(await grove.select_any(num, wave))
        else:
            sizes = [num // num_trees + (tree < num % num_trees) for tree in range(num_trees)]
            await grove.expand(await grove.select(sizes))

    async def _each(self, places: Sequence[int], work: Callable[[int], Awaitable[None]]) -> None:
        """Work on these prompts side by side, as far as there may be trees at the same time."""

        async def one(place: int) -> None:
            async with self._room:
                await work(place)

        await side_by_side([one(place) for place in places], "a prompt")


DEAL = 1
"""The last part of a key, which tells the draws of dealing from others."""
