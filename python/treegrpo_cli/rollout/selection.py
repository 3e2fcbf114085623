"""[selection] -> the rule that says where trees branch next: the core's, asked with trees as columns, or a user's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from treegrpo_cli._core import CoreError, Forest, describe_selection_rules, resolve_selection_options
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.disagreement import RewardsSoFar
from treegrpo_cli.rollout.own_rule import OwnRule, load_own_rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.tree import Tree


CONTRAST, CONFIDENCE = "contrast", "confidence"
CHILD_SOFTMAX = "child-softmax"
"""The value that weighs turns by their entropies."""


class Candidates:
    """Where trees may branch, as a rule sees it.

    `forest` holds the trees, their nodes in the order of their keys, and the rewards known so far; `nodes` are the
    ids there of each tree's candidates. Neither depends on who was finished first. `before` are the rewards of earlier
    steps.
    """

    def __init__(self, trees: Sequence[Tree], before: RewardsSoFar | None = None) -> None:
        self.before = before or RewardsSoFar()
        self._trees = trees
        self._orders = [np.array(tree.in_key_order(), dtype=np.uint32) for tree in trees]
        self._starts = np.cumsum([0, *map(len, self._orders)])
        self.forest = Forest.concat([tree.forest for tree in trees], self._orders)
        self.nodes = [
            np.flatnonzero(tree.may_branch(order.tolist())).astype(np.uint32) + np.uint32(start)
            for tree, order, start in zip(trees, self._orders, self._starts[:-1], strict=True)
        ]

    def apart(self, nodes: NDArray[np.uint32]) -> Iterator[tuple[NDArray[np.intp], Forest, NDArray[np.uint32]]]:
        """Split nodes of `forest` by tree: their places among `nodes`, a forest of the tree alone, their ids there."""
        if self.forest.num_trees == 1:
            yield np.arange(len(nodes)), self.forest, nodes
            return
        trees = self._trees_of(nodes)
        for tree in np.unique(trees):
            places = np.flatnonzero(trees == tree)
            alone = Candidates([self._trees[tree]], self.before)
            yield places, alone.forest, nodes[places] - np.uint32(self._starts[tree])

    def by_tree(self, nodes: NDArray[np.uint32]) -> list[list[int]]:
        """Split nodes of `forest`: the own ids of each tree's."""
        trees = self._trees_of(nodes)
        return [self.in_tree(tree, nodes[trees == tree]) for tree in range(len(self._orders))]

    def in_tree(self, tree: int, nodes: NDArray[np.uint32]) -> list[int]:
        """The tree's own ids of these nodes of `forest`; `tree` is its place among the trees."""
        own: list[int] = self._orders[tree][nodes.astype(np.int64) - self._starts[tree]].tolist()
        return own

    def _trees_of(self, nodes: NDArray[np.uint32]) -> NDArray[np.intp]:
        """The place of each node's tree among the trees."""
        return np.searchsorted(self._starts, nodes, side="right") - 1


class Rule(Protocol):
    """What says where to branch; `candidates` and `nodes` are ids of the forest."""

    @property
    def needs_rewards(self) -> bool:
        """Whether it reads rewards, so that leaves are scored as they close."""
        ...

    @property
    def needs_entropies(self) -> bool:
        """Whether it reads entropies, which samplers compute where they are asked to."""
        ...

    @property
    def reads_prompt(self) -> bool:
        """Whether it reads all trees of the prompt, so that their rounds wait for each other."""
        ...

    @property
    def weighs_prompts(self) -> bool:
        """Whether draws are in proportion to scores that compare across prompts."""
        ...

    async def scores(self, candidates: Candidates, nodes: NDArray[np.uint32]) -> NDArray[np.float64]:
        """The score of each of these candidates, [C]."""
        ...

    async def draw(
        self, candidates: Candidates, nodes: NDArray[np.uint32], n: int, key: Sequence[int]
    ) -> NDArray[np.uint32]:
        """Draw up to n of these candidates, pure in `key`."""
        ...


@dataclass(frozen=True, slots=True)
class CoreRule:
    """A selection rule of the core."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_rewards: bool = False
    reads_prompt: bool = False
    needs_entropies: bool = False

    @property
    def weighs_prompts(self) -> bool:
        """See `Rule`: its scores are what is gained by an expansion, whichever prompt's."""
        return self.name == CONTRAST

    async def scores(self, candidates: Candidates, nodes: NDArray[np.uint32]) -> NDArray[np.float64]:
        """See `Rule`. Raises UserError where the trees lack what the rule reads."""
        try:
            return candidates.forest.selection_scores(nodes, self.name, dict(self.options), **self._known(candidates))
        except CoreError as error:
            raise UserError(f"selection.rule {self.name}: {error.reason}") from None

    async def draw(
        self, candidates: Candidates, nodes: NDArray[np.uint32], n: int, key: Sequence[int]
    ) -> NDArray[np.uint32]:
        """See `Rule`. Raises UserError where the trees lack what the rule reads."""
        try:
            return candidates.forest.select(nodes, n, key, self.name, dict(self.options), **self._known(candidates))
        except CoreError as error:
            raise UserError(f"selection.rule {self.name}: {error.reason}") from None

    def _known(self, candidates: Candidates) -> dict[str, Any]:
        before = candidates.before
        return {"prior": before.prior, "reward_range": before.reward_range, "rewards_asked": self.needs_rewards}


def rescue_rule(kappa: float) -> CoreRule:
    """The rule by which a prompt whose rewards are all equal is expanded: where another outcome is likeliest."""
    return CoreRule(CONTRAST, {"kappa": kappa}, needs_rewards=True, reads_prompt=True)


def load_rule(config: Config) -> CoreRule | OwnRule:
    """Return the rule that the config names. Raises UserError for a user's own that cannot be loaded."""
    selection, rollout = config.selection, config.rollout
    rule = load_own_rule(selection) if selection.is_own else _core_rule(selection.rule, selection.options)
    if rule.needs_rewards and rollout.leaves_kept < rollout.num_leaves:
        raise UserError(
            f"rollout.num_kept_leaves: {rollout.leaves_kept} of {rollout.num_leaves} leaves are kept, but "
            f"selection.rule {selection.rule} reads the reward of each; leave it at 0"
        )
    return rule


def _core_rule(name: str, options: Mapping[str, Any]) -> CoreRule:
    [known] = [rule for rule in describe_selection_rules() if rule["name"] == name]
    return CoreRule(name, options, "rewards" in known["needs"], known["reads_prompt"], "entropies" in known["needs"])


def reads_entropies(config: Config, rule: Rule) -> bool:
    """Whether samplers are asked for entropies: for the rule, for values, or because the user wants them kept."""
    values = (term["options"].get("value") for term in config.advantage.score_terms)
    branches = config.rollout.num_rounds > 0
    return config.rollout.entropies or (branches and rule.needs_entropies) or CHILD_SOFTMAX in values


def cut_of(config: Config) -> dict[str, Any]:
    """By which log-probabilities a turn is cut while it is sampled, as `SamplingParams` takes it."""
    if config.selection.rule != CONFIDENCE:
        return {}
    return resolve_selection_options(CONFIDENCE, config.selection.options)
