"""Prompt -> its trees: the paper's procedure, the trees that grow together as one coroutine.

A chain to the end in each tree, then L rounds of N expansions a tree, then K leaves of each kept and rewarded. Trees
that need not wait for each other grow apart, each as a grove of its own; the trees of a prompt are one grove where the
selection rule reads all of them, where a budget of the prompt is shared, or where somebody else deals the expansions.
What becomes of them depends on their keys and never on who finished first.

Source: Tree-GRPO (arXiv 2509.21240), section 3.2.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli.envs import close_states
from treegrpo_cli.rollout.disagreement import disagreement
from treegrpo_cli.rollout.schedule import side_by_side
from treegrpo_cli.rollout.selection import Candidates, Rule
from treegrpo_cli.rollout.timings import Stopwatch
from treegrpo_cli.rollout.tree import Prompt, Tree

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.player import Player


class Grove:
    """Trees of one prompt while they grow, in the order of `tree_ids`."""

    def __init__(self, player: Player, prompt: Prompt, tree_ids: Iterable[int]) -> None:
        self.player, self.prompt = player, prompt
        self.trees = [Tree(player, prompt, tree_id) for tree_id in tree_ids]
        self._growing = Stopwatch()

    async def run(self) -> list[Tree]:
        """Grow all trees alone, and close what the environment opened for them, however it ends."""
        try:
            await self.grow()
        finally:
            await self.close()
        return self.trees

    async def grow(self) -> None:
        """Grow all trees: a chain, L rounds of N expansions, K leaves kept and rewarded."""
        schedule, rollout = self.player.schedule, self.player.config.rollout
        with schedule.tree():
            await self.plant()
            await schedule.round()
            await self.first_chains()
            for _ in range(rollout.num_rounds):
                sizes = self.round_sizes(rollout.num_expansions)
                if not any(sizes):
                    break
                await schedule.round()
                await self.expand(await self.select(sizes))
        await self.finish()

    async def plant(self) -> None:
        """Put the prompt at each root. Raises PromptError where nothing can grow from it."""
        await self._all(tree.plant() for tree in self.trees)

    async def first_chains(self) -> None:
        """Run the first chain of each tree, which is an expansion of its root, to its end."""
        await self._all(tree.expand([tree.root]) for tree in self.trees)

    async def score_closed(self) -> None:
        """Ask for the rewards of all leaves that have closed by now: one call a tree, leaves in the order of keys."""
        await self._all(tree.reward_closed() for tree in self.trees)

    def candidates(self) -> Candidates:
        """Where the trees may branch next."""
        return Candidates(self.trees, self.player.rewards_so_far)

    async def select(self, sizes: Sequence[int]) -> list[list[int]]:
        """Draw the nodes that the next round of each tree expands, as many as `sizes` says; scores what it must."""
        rule = self.player.rule
        if rule.needs_rewards:
            await self.score_closed()
        with self.player.selecting.running():
            views = self._views()
            return [
                await self._draw(view, tree, size) for view, tree, size in zip(views, self.trees, sizes, strict=True)
            ]

    async def select_any(self, num: int, wave: int, rule: Rule) -> list[list[int]]:
        """Draw up to `num` nodes for the trees' next rounds, wherever in the grove the rule puts them."""
        with self.player.selecting.running():
            candidates = self.candidates()
            key = [self.player.config.seed, self.prompt.number, wave]
            nodes = np.concatenate(candidates.nodes)
            drawn = await rule.draw(candidates, nodes, num, key) if num and len(nodes) else nodes[:0]
            return candidates.by_tree(drawn)

    async def weight(self) -> float:
        """How much an expansion of this prompt is worth beside one of another: by the rule, or as rewards disagree."""
        rule, rollout = self.player.rule, self.player.config.rollout
        if not rule.weighs_prompts:
            return disagreement(self.known_rewards(), self.player.rewards_so_far, rollout.allocation_kappa)
        candidates = self.candidates()
        return float((await rule.scores(candidates, np.concatenate(candidates.nodes))).sum())

    def _views(self) -> list[tuple[Candidates, int]]:
        """What the rule sees of each tree, and the tree's place there: all trees, or its own."""
        if self.player.rule.reads_prompt:
            together = self.candidates()
            return [(together, place) for place in range(len(self.trees))]
        return [(Candidates([tree], self.player.rewards_so_far), 0) for tree in self.trees]

    async def _draw(self, view: tuple[Candidates, int], tree: Tree, n: int) -> list[int]:
        candidates, place = view
        nodes = candidates.nodes[place]
        if not n or not len(nodes):
            return []
        drawn = await self.player.rule.draw(candidates, nodes, n, [*tree.key, tree.num_rounds])
        return candidates.in_tree(place, drawn)

    async def expand(self, draws: Sequence[Sequence[int]]) -> None:
        """Run a round: chains from the nodes drawn of each tree, side by side.

        A tree without any counts the round too: its next one has a key of its own, and what has a lower number was
        drawn before, in whichever tree.
        """
        await self._all(tree.expand(nodes) for tree, nodes in zip(self.trees, draws, strict=True))

    async def finish(self) -> None:
        """Keep K leaves of each tree, and ask for the rewards that are not known yet."""
        await self._all(tree.reward_kept() for tree in self.trees)

    async def close(self) -> None:
        """Close what the environment opened."""
        await close_states([state for tree in self.trees for state in tree.states])

    def round_sizes(self, num_expansions: int) -> list[int]:
        """How many expansions the next round of each tree gets, under the prompt's budget; zeros end the growth."""
        budget = self.player.config.budget
        spent = [
            (self.generated_tokens, budget.prompt_tokens),
            (self.num_tool_calls, budget.prompt_tool_calls),
            (self.seconds, budget.prompt_seconds),
        ]
        if any(limit and amount >= limit for amount, limit in spent):
            return [0] * len(self.trees)
        if not budget.prompt_leaves:
            return [num_expansions] * len(self.trees)
        left, num_trees = max(budget.prompt_leaves - self.num_leaves, 0), len(self.trees)
        return [min(num_expansions, left // num_trees + (place < left % num_trees)) for place in range(num_trees)]

    def room(self, num_expansions: int) -> int:
        """How many expansions the next round may have where a tree takes `num_expansions` at most."""
        if not any(any(tree.may_branch(tree.turns)) for tree in self.trees):
            return 0
        return sum(self.round_sizes(num_expansions))

    def known_rewards(self) -> list[float]:
        """The rewards so far, in the order of trees and of keys."""
        return rewards_of(self.trees)

    @property
    def num_leaves(self) -> int:
        """Leaves so far, scored or not."""
        return sum(tree.num_leaves for tree in self.trees)

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled so far, those of a shared turn once."""
        return sum(tree.generated_tokens for tree in self.trees)

    @property
    def num_tool_calls(self) -> int:
        """Tools that ran so far."""
        return sum(tree.num_tool_calls for tree in self.trees)

    @property
    def seconds(self) -> float:
        """In which chains ran or rewards were asked for."""
        return self._growing.any_s

    async def _all(self, work: Iterable[Coroutine[Any, Any, None]]) -> None:
        with self._growing.running():
            await side_by_side(work, f"prompt {self.prompt.prompt_id}: a tree")


def rewards_of(trees: Sequence[Tree]) -> list[float]:
    """The rewards so far, in the order of trees and of keys."""
    by_leaf = [[tree.rewards.get(leaf) for leaf in tree.scorable()] for tree in trees]
    return [worth.reward for leaves in by_leaf for worth in leaves if worth and worth.reward is not None]


def groves_of(player: Player, prompt: Prompt, tree_ids: Sequence[int]) -> list[Grove]:
    """The trees of a prompt, those that wait for each other together."""
    together = [tree_ids] if trees_wait(player.config, player.rule) else [[tree_id] for tree_id in tree_ids]
    return [Grove(player, prompt, ids) for ids in together if ids]


def trees_wait(config: Config, rule: Rule) -> bool:
    """Whether the rounds of a prompt's trees wait for each other, so that they grow all in one go or not at all."""
    several = config.rollout.num_trees > 1 and config.rollout.num_rounds > 0
    return several and (rule.reads_prompt or config.budget.limits_prompts)
