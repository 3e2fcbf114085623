"""Endless prompts -> the groups of one training step: fresh prompts for those that teach nothing.

A group whose rewards are all equal teaches nothing. Where `advantage.dead_prompts` is `refill`, as many prompts as
are missing of `train.prompts_per_step` are drawn in their place, and again for those of them that teach nothing,
until a step is full or `train.max_gen_batches` is reached. What a step draws is a prefix of the prompts, pure in
their rewards: the first as many as hold a full step, or all that the limit allows.

Source: dynamic sampling, DAPO (arXiv 2503.14476), section 3.2; there a whole further batch is drawn, and cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing
from itertools import islice
from typing import TYPE_CHECKING

from treegrpo_cli.rollout.collect import Grown, collect
from treegrpo_cli.rollout.step_budget import StepBudget
from treegrpo_cli.rollout.waves import grow_in_waves

if TYPE_CHECKING:
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.rollout.tree import Prompt


def do_nothing() -> None:
    """When the last tree was started: the default of `grow_step`."""


async def grow_step(
    player: Player,
    prompts: Iterator[Prompt],
    on_grown: Callable[[Grown], None],
    on_all_started: Callable[[], None] = do_nothing,
) -> list[Grown]:
    """Grow a step's groups, and return them in the order of their numbers, those that teach nothing too.

    `on_grown` sees each group when it ends; `on_all_started` is called when there was room for the step's last tree,
    never where only the end of some trees says whether others follow. A fresh prompt is started when all those before
    it have ended, so that turns are sampled beside the same others whatever a reward or a tool took.
    """
    train = player.config.train
    refills = player.config.advantage.dead_prompts == "refill"
    room = train.prompts_per_step * (train.max_gen_batches if refills else 1)
    budget = StepBudget(player.config.budget)
    step: list[Grown] = []
    missing = train.prompts_per_step
    while missing and room and not (step and budget.is_reached()):
        drawn = list(islice(prompts, min(missing, room)))
        batch = await _grow_batch(player, drawn, budget, on_grown, do_nothing if refills else on_all_started)
        step += batch
        room -= len(batch)
        missing = sum(not grown.is_alive for grown in batch) if refills else 0
    return step


async def _grow_batch(
    player: Player,
    prompts: list[Prompt],
    budget: StepBudget,
    on_grown: Callable[[Grown], None],
    on_all_started: Callable[[], None],
) -> list[Grown]:
    """Grow these prompts side by side: in waves where they wait for each other, else each as it can."""
    if player.config.prompts_wait:
        return await grow_in_waves(player, prompts, budget, on_grown)
    grown_batch = []
    followed = _followed_by(prompts, on_all_started)
    async with aclosing(collect(player, followed, player.config.rollout.num_trees)) as groups:
        async for grown in groups:
            on_grown(grown)
            grown_batch.append(grown)
    return sorted(grown_batch, key=lambda grown: grown.prompt.number)


def _followed_by(prompts: list[Prompt], call: Callable[[], None]) -> Iterator[Prompt]:
    """Yield the prompts; whoever asks for one more has started the last."""
    yield from prompts
    call()
