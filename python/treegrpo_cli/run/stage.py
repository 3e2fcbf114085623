"""Config + world -> a player with its engine, and where its coroutines run until they end or are stopped."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from treegrpo_cli.rollout.player import Player
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.run.stopping import StopRequest

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.world import World
    from treegrpo_cli.run.progress import Reporter


class Stage(NamedTuple):
    """What a command plays with."""

    player: Player
    runner: asyncio.Runner
    stop: StopRequest


def open_stage(
    stack: ExitStack,
    config: Config,
    world: World,
    engine_log: Path,
    reporter: Reporter,
    *,
    greedy: bool = False,
    parts: Parts | None = None,
) -> Stage:
    """Start the engine with `model.path`; `stack` closes all of it, and the world in the loop that it was played in."""
    announce(world, reporter)
    sampler = stack.enter_context(closing((parts or Parts()).open_sampler(config, engine_log, reporter.say)))
    player = Player(world, sampler, config, greedy=greedy)
    runner, stop = stack.enter_context(asyncio.Runner()), stack.enter_context(StopRequest())
    stack.callback(lambda: runner.run(world.close()))
    return Stage(player, runner, stop)


def announce(world: World, reporter: Reporter) -> None:
    """Say what a user should know of the chat template, and who reads tool calls."""
    for notice in world.dialect.notices:
        reporter.warn(notice)
    if world.dialect.reader_name:
        reporter.say(f"tool calls are read by {world.dialect.reader_name}")
