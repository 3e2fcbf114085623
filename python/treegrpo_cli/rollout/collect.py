"""Prompts -> groups of finished trees: many trees at a time, each at its own pace.

Trees are started in the order of the prompts, no more than `rollout.max_live_trees` at once, so a
dataset of any length is read as it is needed. Groups come out as their last tree ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Iterable

from treegrpo_cli.envs import check_environment
from treegrpo_cli.rollout.tree import Player, Prompt, Tree

Group = list[Tree]
TreeId = tuple[str, int]
"""(prompt_id, tree_id)."""


def ignore_tree(tree: Tree) -> None:
    """Do nothing with a finished tree: the default of `collect`."""


async def collect(
    player: Player,
    prompts: Iterable[Prompt],
    num_trees: int,
    on_tree: Callable[[Tree], None] = ignore_tree,
    finished: Container[TreeId] = frozenset(),
) -> AsyncGenerator[tuple[Prompt, Group]]:
    """Grow `num_trees` a prompt and yield (prompt, its trees by tree_id) as each prompt's last one ends.

    `on_tree` sees every tree at once when it ends; trees in `finished` are not grown again, so a group
    may come short of them. The first error of any tree ends all of them and is raised here, alone.
    """
    await check_environment(player.environment)
    groups: asyncio.Queue[tuple[Prompt, Group] | BaseException | None] = asyncio.Queue()
    producer = asyncio.create_task(_grow_all(player, prompts, num_trees, on_tree, finished, groups))
    try:
        while (item := await groups.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        producer.cancel()
        await asyncio.wait([producer])


async def _grow_all(
    player: Player,
    prompts: Iterable[Prompt],
    num_trees: int,
    on_tree: Callable[[Tree], None],
    finished: Container[TreeId],
    groups: asyncio.Queue[tuple[Prompt, Group] | BaseException | None],
) -> None:
    live = asyncio.Semaphore(player.config.rollout.max_live_trees)

    async def grow(prompt: Prompt, tree_id: int) -> Tree:
        try:
            tree = await Tree(player, prompt, tree_id).grow()
        finally:
            live.release()
        on_tree(tree)
        return tree

    async def gather(prompt: Prompt, trees: list[asyncio.Task[Tree]]) -> None:
        groups.put_nowait((prompt, [await tree for tree in trees]))

    try:
        async with asyncio.TaskGroup() as tasks:
            for prompt in prompts:
                trees = []
                for tree_id in range(num_trees):
                    if (prompt.prompt_id, tree_id) not in finished:
                        await live.acquire()
                        trees.append(tasks.create_task(grow(prompt, tree_id)))
                tasks.create_task(gather(prompt, trees))
    except BaseExceptionGroup as errors:
        groups.put_nowait(_first(errors))
    except Exception as error:  # raised by the reader of `groups`
        groups.put_nowait(error)
    else:
        groups.put_nowait(None)


def _first(errors: BaseException) -> BaseException:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
