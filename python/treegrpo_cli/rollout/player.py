"""Policy + world -> a player: what every tree of a run shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.disagreement import RewardsSoFar
from treegrpo_cli.rollout.schedule import make_schedule
from treegrpo_cli.rollout.selection import Rule, cut_of, load_rule, reads_entropies
from treegrpo_cli.rollout.timings import Stopwatch, Timings
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.types import Completion, DrawnTurn, SamplingParams
from treegrpo_cli.workers import open_rewards

if TYPE_CHECKING:
    import numpy as np

    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.gate import Gate
    from treegrpo_cli.rollout.world import World
    from treegrpo_cli.samplers.base import Sampler, Trained


class Player:
    """A policy in a world: what every tree shares. A run has two in one world, to train and to evaluate."""

    def __init__(self, world: World, sampler: Sampler, config: Config, *, greedy: bool = False) -> None:
        self.world, self.sampler, self.config = world, sampler, config
        self.environment, self.dialect, self.tokenizer = world.environment, world.dialect, world.tokenizer
        self.schedule = make_schedule(config.rollout.schedule)
        self.rule: Rule = load_rule(config)
        self.tools, self.rewarding, self.selecting = Stopwatch(), Stopwatch(), Stopwatch()
        self.rewards = open_rewards(world.environment, config.reward)
        self.rewards_so_far = RewardsSoFar()
        """Of a run's earlier steps: what rules and allocation take a prompt for that they know little of."""
        self.gate: Gate | None = None
        """What turns pass on their way to the sampler, where weights arrive while trees grow."""
        self.live_trees: asyncio.Semaphore | None = None
        """Room that several steps share whose trees grow side by side; without it each has all there is."""
        self.max_context_tokens = min(config.rollout.max_context_tokens or sampler.max_model_len, sampler.max_model_len)
        if self.max_context_tokens < 2:
            raise UserError(f"rollout.max_context_tokens: {self.max_context_tokens} leaves no tokens for a turn")
        self.params = SamplingParams(
            max_tokens=config.rollout.max_turn_tokens,
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            top_k=config.rollout.top_k,
            stop=tuple(self.dialect.stop),
            greedy=greedy,
            entropies=reads_entropies(config, self.rule),
            **cut_of(config),
        )

    def of_step(self, rewards_so_far: RewardsSoFar, live_trees: asyncio.Semaphore) -> Player:
        """The same player for the trees of one step among several; what it measures is counted here."""
        player = copy(self)
        player.rewards_so_far, player.live_trees = rewards_so_far, live_trees
        return player

    async def act(
        self, context: np.ndarray, seed: int, drawn: tuple[DrawnTurn, ...] = (), prefix_key: int = 0
    ) -> Completion:
        """Sample a turn behind `context`, none of `drawn`, no longer than the context limit leaves room for.

        Contexts of one `prefix_key` begin alike.
        """
        max_tokens = min(self.params.max_tokens, self.max_context_tokens - len(context))
        params = replace(self.params, max_tokens=max_tokens, drawn=drawn, prefix_key=prefix_key)
        return await (self.gate or self.sampler).sample(context, params, seed)

    def take_timings(self) -> Timings:
        """Return where the seconds since the last call went; the sampler's are of all that it sampled."""
        engine = self.sampler.take_counts()
        timings = Timings(
            engine_s=engine.step_s,
            num_engine_steps=engine.num_steps,
            generated_tokens=engine.generated_tokens,
            tool_s=self.tools.sum_s,
            tool_wait_s=self.tools.any_s,
            num_tool_calls=self.tools.count,
            reward_s=self.rewarding.sum_s,
            selection_s=self.selecting.any_s,
        )
        for stopwatch in (self.tools, self.rewarding, self.selecting):
            stopwatch.reset()
        return timings


def open_sampler(
    config: Config, log_path: Path | None, say: Callable[[str], None], trained: Trained | None = None
) -> Sampler:
    """Start the engine that the config asks for, with room for the longest context that its limits allow.

    `say` is told before one starts that takes a while; `trained` as in `make_sampler`.
    """
    return make_sampler(
        config.sampler,
        config.model.path,
        dtype=config.model.dtype,
        device=config.model.device,
        max_model_len=config.rollout.context_tokens,
        seed=config.seed,
        log_path=log_path,
        say=say,
        trained=trained,
    )
