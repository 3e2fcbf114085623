"""Policy + questions -> mean reward with an interval: one greedy chain a question."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from treegrpo_cli.config import Config
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.tree import Player, Prompt
from treegrpo_cli.run.intervals import Mean, mean_with_interval
from treegrpo_cli.run.progress import Bar
from treegrpo_cli.types import Task


def greedy_config(config: Config) -> Config:
    """The same settings for one chain a question: M = 1, L = 0."""
    chain = {"num_trees": 1, "num_rounds": 0, "num_kept_leaves": 0}
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=chain)})


def evaluation_config(config: Config) -> Config:
    """`greedy_config`, rewarded by `reward.eval_function` alone."""
    reward = config.reward.model_copy(update={"functions": [config.reward.eval_function], "weights": []})
    return greedy_config(config).model_copy(update={"reward": reward})


async def evaluate(player: Player, tasks: Sequence[Task], bar: Bar) -> Mean:
    """Play one chain a task and return the mean reward; what could not be played or scored is left out."""
    prompts = (Prompt(number, f"eval-{number:06d}", task) for number, task in enumerate(tasks))
    rewards: dict[int, float] = {}
    async with aclosing(collect(player, prompts, num_trees=1)) as groups:
        async for grown in groups:
            leaves = [leaf.reward for tree in grown.trees for leaf in tree.rewards.values()]
            rewards.update((grown.prompt.number, reward) for reward in leaves if reward is not None)
            bar.advance(note=f"mean {sum(rewards.values()) / max(len(rewards), 1):.3f}")
    return mean_with_interval([reward for _, reward in sorted(rewards.items())])
