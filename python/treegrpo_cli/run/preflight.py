"""Config -> what a command plays with, checked before the engine starts: all problems at once, a line each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from treegrpo_cli.data.tasks import load_tasks
from treegrpo_cli.envs import check_environment, close_environment
from treegrpo_cli.errors import Problems, UserError
from treegrpo_cli.models.pretrained import check_weight_files, load_tokenizer, read_model_config
from treegrpo_cli.rewards import load_rewards
from treegrpo_cli.rollout.forest import check_terms
from treegrpo_cli.rollout.selection import load_rule, reads_entropies
from treegrpo_cli.rollout.world import World
from treegrpo_cli.run.loggers import check_logger
from treegrpo_cli.run.memory import check_memory
from treegrpo_cli.run.scale_checks import check_engines
from treegrpo_cli.samplers import check_engine, resolve_device, runs_here
from treegrpo_cli.workers import open_environment

if TYPE_CHECKING:
    from treegrpo_cli.config import Config, RewardConfig
    from treegrpo_cli.types import Task

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Questions:
    """Data that a command asks: the setting that names them, where they are, and what their answers are judged by."""

    key: str
    source: str
    split: str
    limit: int
    """0 = all."""
    reward: RewardConfig


def train_questions(config: Config) -> Questions:
    """The questions that trees are grown for."""
    data = config.data
    return Questions("data.train", data.train, data.split, data.limit, config.reward)


def eval_questions(config: Config, reward: RewardConfig) -> Questions:
    """The questions that an evaluation asks."""
    data = config.data
    return Questions("data.eval", data.eval, data.eval_split, data.eval_limit, reward)


def training_questions(config: Config) -> list[Questions]:
    """The questions of a training run: those of its evaluations too, where it has any."""
    held_out = [eval_questions(config, config.reward.evaluated)] if config.train.evaluates else []
    return [train_questions(config), *held_out]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was checked, ready to be played with: tasks by the setting that names them, and the world."""

    tasks: dict[str, list[Task]]
    world: World

    def close(self) -> None:
        """Close the world, where who played in it did not come to that."""
        asyncio.run(self.world.close())


def prepare(
    config: Config,
    questions: Sequence[Questions],
    loggers: Sequence[str] = (),
    checks: Sequence[Callable[[], object]] = (),
    *,
    trains: bool = False,
) -> Prepared:
    """Read the data, the model's files and the template, open the environment, load rewards and rule, look for loggers.

    Weights are not loaded, and no engine is started. `checks` are more functions that raise UserError; `trains` counts
    the memory of a training run too.

    Raises Problems with a line for each thing that is wrong.
    """
    found = _Found()
    for check in checks:
        found.by(check)
    if config.scale.uses_ray:
        found.by(check_engines, config)
        found.by(check_ray)
    tasks = {asked.key: _read_questions(config, asked, found) for asked in questions}
    for logger in loggers:
        found.by(check_logger, logger)
    found.by(load_rule, config)
    found.by(check_terms, config.advantage)
    tokenizer = _read_model(config, found, trains)
    world = found.by(_open_world, config, tokenizer) if tokenizer else found.by(_open_environment, config)
    if found.lines or world is None:
        raise Problems(found.lines, found.trace)
    return Prepared(tasks, world)


def check(
    config: Config,
    questions: Sequence[Questions],
    loggers: Sequence[str] = (),
    checks: Sequence[Callable[[], object]] = (),
    *,
    trains: bool = False,
) -> None:
    """Find what is wrong, as `prepare` does, and leave nothing open; one worker stands for all. Raises Problems."""
    if config.environment.workers > 1:
        environment = config.environment.model_copy(update={"workers": 1})
        config = config.model_copy(update={"environment": environment})
    prepare(config, questions, loggers, checks, trains=trains).close()


@dataclass(slots=True)
class _Found:
    """The problems so far."""

    lines: list[str] = field(default_factory=list)
    trace: Sequence[str] = ()
    """Of the first one in the user's own code."""

    def by(self, check: Callable[..., Result], *arguments: Any) -> Result | None:
        """Return what the check returns; None, with its problem noted, where there is one."""
        try:
            return check(*arguments)
        except UserError as error:
            self.trace = self.trace or error.trace
            self.add(*(error.lines if isinstance(error, Problems) else [str(error)]))
            return None

    def add(self, *lines: str) -> None:
        """Note problems, each once."""
        self.lines += [line for line in dict.fromkeys(lines) if line not in self.lines]


def _read_questions(config: Config, asked: Questions, found: _Found) -> list[Task]:
    rewards = found.by(load_rewards, asked.reward)
    if not asked.source:
        found.add(f"{asked.key}: not set; give it in the config file, or as {asked.key}=...")
        return []
    needs_answer = rewards is not None and rewards.needs_answer

    def read() -> list[Task]:
        limits = config.limits.resolved
        return load_tasks(
            asked.source, split=asked.split, limit=asked.limit, require_answer=needs_answer, limits=limits
        )

    tasks = found.by(read) or []
    if rewards and tasks:
        found.add(*rewards.problems(tasks))
    return tasks


def _read_model(config: Config, found: _Found, trains: bool) -> Any:
    """Return the tokenizer, or None; what is wrong with the model's files and its device is found on the way."""
    if not config.model.path:
        found.add("model.path: not set; give it in the config file, or as model.path=...")
        return None
    whole = found.by(read_model_config, config.model.path) is not None
    before = len(found.lines)
    if trains or runs_here(config.sampler.engine):
        found.by(check_weight_files, config.model.path)
    # where there is no model, the same would be said of its tokenizer
    tokenizer = (found if whole else _Found()).by(load_tokenizer, config.model.path, config.model.chat_template)
    device = found.by(resolve_device, config.model.device)
    if device:
        found.by(_check_engine, config, device)
    if trains and whole and tokenizer and len(found.lines) == before:
        found.by(check_memory, config)
    return tokenizer


def check_ray() -> None:
    """Raise UserError where Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError("[scale] needs Ray: pip install 'treegrpo[scale]'")


def _check_engine(config: Config, device: str) -> None:
    """Raise UserError where the engine is not installed, or cannot do as it is asked to."""
    try:
        entropies = reads_entropies(config, load_rule(config))
    except UserError:  # said of the rule before
        entropies = config.rollout.entropies
    check_engine(config.sampler, device, distinct=config.rollout.distinct_siblings, entropies=entropies)


def _open_world(config: Config, tokenizer: Any) -> World:
    world = World(config, tokenizer)

    async def check_or_close() -> None:
        try:
            await world.check()
        except UserError:
            await world.close()
            raise

    asyncio.run(check_or_close())
    return world


def _open_environment(config: Config) -> None:
    """Find what is wrong with the environment where there is no tokenizer to open a world with."""
    environment = open_environment(config)

    async def check_and_close() -> None:
        try:
            await check_environment(environment, config.environment.check_timeout_s)
        finally:
            await close_environment(environment)

    asyncio.run(check_and_close())
