"""Prompts -> groups of trees that grow together, wave by wave: expansions are dealt across the prompts.

    the first chains of all trees
    L waves: the rewards of all leaves so far; N·M·P expansions dealt to the P prompts; their chains, side by side
    rescue: further waves for prompts whose rewards are all equal, as long as they may have more
    rewards of all that is left

A wave is a round of each tree that it expands. It starts when the one before it has ended everywhere, so what it knows,
and which turns are sampled side by side, does not depend on who was finished first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from treegrpo_cli.rollout.collect import Grown, differ
from treegrpo_cli.rollout.dealing import deal
from treegrpo_cli.rollout.failures import Failure, PromptError
from treegrpo_cli.rollout.grove import Grove
from treegrpo_cli.rollout.schedule import side_by_side
from treegrpo_cli.rollout.selection import rescue_rule

if TYPE_CHECKING:
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.rollout.selection import Rule
    from treegrpo_cli.rollout.step_budget import StepBudget
    from treegrpo_cli.rollout.tree import Prompt

Place = int
"""Of a prompt among those that grow together."""
Draws = dict[Place, list[list[int]]]
"""The nodes that a wave expands, of each tree of each prompt."""

DEAL = 1
"""The last part of a key, which tells the draws of dealing from others."""


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
        self.failures: dict[Place, Failure] = {}
        """Of prompts that nothing grows from."""
        self.num_rescues: Counter[Place] = Counter()
        self._room = asyncio.Semaphore(max(self.rollout.max_live_trees // self.rollout.num_trees, 1))
        budget.watch(self.groves)

    async def grow(self) -> None:
        """Grow all groups to their end."""
        await self.player.world.check()
        await self._each(range(len(self.groves)), self._start)
        for wave in range(1, self.rollout.num_rounds + 1):
            if self.budget.is_reached():
                break
            uneven = self.rollout.allocation == "uncertain"
            draws = await (self._dealt(wave) if uneven else self._evenly(wave))
            if not draws:
                break
            await self._expand(draws)
        if self.rollout.rescue != "none":
            await self._rescue()
        await self._each(self._open, lambda place: self.groves[place].finish())

    async def close(self) -> None:
        """Close what the environment opened."""
        for grove in self.groves:
            await grove.close()

    def groups(self) -> list[Grown]:
        """What has grown, in the order of the prompts."""
        return [self._group(place, grove) for place, grove in enumerate(self.groves)]

    def _group(self, place: Place, grove: Grove) -> Grown:
        if place in self.failures:
            return Grown(grove.prompt, [], [self.failures[place]], grove.seconds)
        failures = [failure for tree in grove.trees for failure in tree.failures]
        return Grown(grove.prompt, grove.trees, failures, grove.seconds, self.num_rescues[place])

    @property
    def _open(self) -> list[Place]:
        """The prompts that grow."""
        return [place for place in range(len(self.groves)) if place not in self.failures]

    async def _start(self, place: Place) -> None:
        try:
            await self.groves[place].plant()
        except PromptError as error:
            prompt_id = self.groves[place].prompt.prompt_id
            self.failures[place] = Failure(error.kind, prompt_id, error.reason, error.tree_id, error.trace)
            return
        await self.groves[place].first_chains()

    async def _evenly(self, wave: int) -> Draws:
        """N expansions of each tree, as long as there is room for all."""
        num_trees = self.rollout.num_trees
        rooms = self._rooms(self._open, self.rollout.num_expansions)
        dealt = self._deal(wave, dict.fromkeys(rooms, 1.0), rooms)
        draws: Draws = {}

        async def draw(place: Place) -> None:
            sizes = [dealt[place] // num_trees + (tree < dealt[place] % num_trees) for tree in range(num_trees)]
            draws[place] = await self.groves[place].select(sizes)

        await self._each(list(dealt), draw)
        return draws

    async def _dealt(self, wave: int) -> Draws:
        """As many expansions of all prompts together, dealt by their weights."""
        places = self._open
        await self._each(places, lambda place: self.groves[place].score_closed())
        planned = len(places) * self.rollout.num_trees * self.rollout.num_expansions
        weights = {place: await self.groves[place].weight() for place in places}
        return await self._drawn(wave, weights, self._rooms(places, planned), planned, self.player.rule)

    async def _rescue(self) -> None:
        """Expand prompts whose rewards are all equal, a few nodes at a time, until they differ."""
        rule, num = rescue_rule(self.rollout.allocation_kappa), max(self.rollout.num_expansions, 1)
        wave = self.rollout.num_rounds
        while not self.budget.is_reached():
            wave += 1
            await self._each(self._open, lambda place: self.groves[place].score_closed())
            lost = [place for place in self._open if self._is_lost(self.groves[place].known_rewards())]
            room = {
                place: min(most, num, self.rollout.max_rescues - self.num_rescues[place])
                for place, most in self._rooms(lost, num).items()
            }
            draws = await self._drawn(wave, dict.fromkeys(lost, 1.0), room, sum(room.values()), rule)
            if not draws:
                break
            self.num_rescues.update({place: sum(map(len, nodes)) for place, nodes in draws.items()})
            await self._expand(draws)

    def _is_lost(self, rewards: Sequence[float]) -> bool:
        """Whether a prompt's rewards are all equal, and what `rollout.rescue` says."""
        if not rewards or differ(rewards):
            return False
        return self.rollout.rescue == "dead" or max(rewards) < self.player.rewards_so_far.mean

    async def _drawn(
        self, wave: int, weights: Mapping[Place, float], room: Mapping[Place, int], num: int, rule: Rule
    ) -> Draws:
        """Deal `num` expansions and draw each prompt's nodes; a rule that draws fewer leaves the rest to the others."""
        room = dict(room)
        while True:
            dealt = self._deal(wave, weights, room, num)
            draws = {place: await self.groves[place].select_any(count, wave, rule) for place, count in dealt.items()}
            drawn = {place: sum(map(len, nodes)) for place, nodes in draws.items()}
            if drawn == dealt:
                return draws
            room |= {place: count for place, count in drawn.items() if count < dealt[place]}

    def _deal(
        self, wave: int, weights: Mapping[Place, float], room: Mapping[Place, int], num: int | None = None
    ) -> dict[Place, int]:
        """Deal `num` expansions (None: as many as there is room for) within the step's budget; those that get any."""
        num = min(sum(room.values()) if num is None else num, self.budget.leaves_left())
        key = [self.player.config.seed, self.groves[0].prompt.number, wave, DEAL]
        dealt = deal(num, list(weights.values()), [room[place] for place in weights], key)
        return {place: count for place, count in zip(weights, dealt, strict=True) if count}

    def _rooms(self, places: Iterable[Place], num_expansions: int) -> dict[Place, int]:
        return {place: self.groves[place].room(num_expansions) for place in places}

    async def _expand(self, draws: Draws) -> None:
        """Run the chains of a wave to their end."""
        await self._each(list(draws), lambda place: self.groves[place].expand(draws[place]))

    async def _each(self, places: Sequence[Place], work: Callable[[Place], Awaitable[None]]) -> None:
        """Work on these prompts side by side, as far as there may be trees at the same time."""

        async def one(place: Place) -> None:
            async with self._room:
                await work(place)

        await side_by_side([one(place) for place in places], "a prompt")
