"""Prompt + nodes to expand -> tree: chains of turns, the only place where sampler and environment meet.

Its grove says which nodes (`grove.py`); each chain from there is a coroutine. A turn starts when its own tool answers;
the engine batches whatever waits. Tokens in, tokens
out: a context is always the stored tokens of its path, never text that is tokenised again. What a tree
becomes depends on its keys (seed, prompt, tree, round, draw, turn) and never on who finished first.

Source: Tree-GRPO (arXiv 2509.21240), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli._core import Forest, derive_seed, keep_leaves
from treegrpo_cli.envs import key_of_state, reset_with_retries, step_with_retries
from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.rewards.noise import told
from treegrpo_cli.rollout.call_spans import tokens_of
from treegrpo_cli.rollout.failures import Failure, Kind, PromptError
from treegrpo_cli.rollout.schedule import side_by_side
from treegrpo_cli.rollout.siblings import Place, Siblings
from treegrpo_cli.rollout.timings import Stopwatch
from treegrpo_cli.types import Completion, Message, NodeStatus, Rollout, StepResult, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli.rewards import LeafReward
    from treegrpo_cli.rollout.player import Player

NodeKey = tuple[int, int, int]
"""(round, draw, turn): a node's place in its tree whatever the order of arrival; a parent's is smaller."""

ROOT_KEY: NodeKey = (-1, 0, 0)

SCORABLE = (NodeStatus.DONE, NodeStatus.TRUNCATED_TURNS, NodeStatus.TRUNCATED_TOKENS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A task to grow trees for: `number` keys its random draws, `prompt_id` names its group in files."""

    number: int
    prompt_id: str
    task: Task

    @classmethod
    def numbered(cls, number: int, task: Task) -> Prompt:
        """The prompt that its number names."""
        return cls(number, f"{number:08d}", task)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the forest does not know of a node: its key, its text, and the state of the environment behind it."""

    key: NodeKey
    depth: int
    status: NodeStatus
    state: Any
    text: str = ""
    observation: str = ""
    messages: tuple[Message, ...] = ()
    num_tool_calls: int = 0
    num_failed_tool_calls: int = 0
    env_reward: float | None = None
    """What the environment itself gave for this turn."""
    error: str | None = None
    state_key: int = 0
    """Of the state behind the turn, where the environment gives one; 0 = none."""


class Tree:
    """One tree while it grows: the forest's tables for tokens, `turns` for what stands beside them."""

    def __init__(self, player: Player, prompt: Prompt, tree_id: int) -> None:
        self.player, self.prompt, self.tree_id = player, prompt, tree_id
        self.key = [player.config.seed, prompt.number, tree_id]
        self.forest = Forest()
        self.turns: dict[int, Turn] = {}
        self.root = 0
        self.prompt_text = ""
        self.prompt_messages: tuple[Message, ...] = ()
        self.rewards: dict[int, LeafReward] = {}
        """Kept leaf -> what it is worth, and why where a reward function failed; none is asked for twice."""
        self.failures: list[Failure] = []
        self.num_rounds = 0
        """Rounds begun, that of the first chain too: the number of the next."""
        self.num_leaves = self.generated_tokens = self.num_tool_calls = self.num_failed_tool_calls = 0
        """What was spent so far: chains that ended, tokens sampled, tools that ran."""
        self._growing = Stopwatch()
        rollout = player.config.rollout
        self.siblings = Siblings(rollout.min_undrawn if rollout.distinct_siblings else None)
        self.states: list[Any] = []
        """Every state that the environment gave, to be closed when the tree is done."""

    async def expand(self, nodes: Sequence[int]) -> None:
        """Run the tree's next round: a chain from each of these nodes, side by side. The first starts from the root."""
        round_, self.num_rounds = self.num_rounds, self.num_rounds + 1
        placed = enumerate(zip(nodes, self.siblings.places(nodes), strict=True))
        chains = (self.run_chain(node, round_, draw, place) for draw, (node, place) in placed)
        with self._growing.running():
            await side_by_side(chains, f"prompt {self.prompt.prompt_id}: a chain")

    @property
    def seconds(self) -> float:
        """In which chains ran so far."""
        return self._growing.any_s

    async def plant(self) -> None:
        """Put the prompt at the root. Raises PromptError where nothing can grow from it."""
        player, settings = self.player, self.player.config.rollout
        try:
            state, messages = await reset_with_retries(player.environment, self.prompt.task, player.config.environment)
            self.states.append(state)
            state_key = await key_of_state(player.environment, state, player.config.environment)
        except ToolError as error:
            raise PromptError("reset", f"the environment does not start: {error}", self.tree_id, error.trace) from error
        self.prompt_messages = tuple(messages)
        try:
            token_ids = player.dialect.prompt_ids(messages)
        except UserError as error:  # a chat template that does not take this row
            raise PromptError("prompt", str(error), self.tree_id) from error
        if not token_ids:
            raise PromptError("prompt", "no tokens; the tokenizer of model.path knows no text", self.tree_id)
        limit = min(settings.max_prompt_tokens, player.max_context_tokens - 1)
        if len(token_ids) > limit:
            allowed = f"rollout.max_prompt_tokens and the context of {player.max_context_tokens} allow {limit}"
            raise PromptError("prompt", f"{len(token_ids)} tokens, but {allowed}", self.tree_id)
        self.prompt_text = player.tokenizer.decode(token_ids, skip_special_tokens=False)
        self.root = self.forest.add_tree(self.prompt.number, np.asarray(token_ids, dtype=np.uint32))
        self.turns[self.root] = Turn(ROOT_KEY, 0, NodeStatus.OPEN, state, state_key=state_key)

    async def run_chain(self, node: int, round_: int, draw: int, place: Place) -> None:
        """Take turns from `node` on until the branch closes; none where too little is left to draw there."""
        if place.before:
            await place.before.wait()
        if not self.siblings.may_draw(node):
            place.sampled.set()
            return
        turn = 0
        with self.player.schedule.chain():
            while self.turns[node].status is NodeStatus.OPEN:
                node = await self.take_turn(node, (round_, draw, turn), place)
                turn += 1
        self.num_leaves += 1

    async def take_turn(self, parent: int, key: NodeKey, place: Place) -> int:
        """Sample a turn, step the environment, add the node; a tool that fails closes its own branch."""
        player, before = self.player, self.turns[parent]
        context = self.forest.context(parent)
        await player.schedule.turn()
        seed, drawn = derive_seed([*self.key, *key]), self.siblings.drawn(parent)
        completion = await player.act(context, seed, drawn, self.prompt.number)
        self.siblings.note(parent, completion)
        place.sampled.set()
        await player.schedule.turn()
        turn = Turn(key, before.depth + 1, NodeStatus.TRUNCATED_TOKENS, before.state, completion.text)
        observation: Sequence[int] = ()
        is_cut = completion.finish_reason == "length"
        if completion.finish_reason == "pruned":
            turn = replace(turn, status=NodeStatus.PRUNED)
        elif not is_cut or getattr(player.environment, "takes_cut_turns", False):
            action = replace(player.dialect.parse(completion.text), cut=is_cut)
            try:
                with player.tools.running():
                    state, result = await step_with_retries(
                        player.environment, before.state, action, player.config.environment
                    )
                self.states.append(state)
                after, added = self.close_or_go_on(turn, state, result, completion, len(context))
                if after.status is NodeStatus.OPEN:
                    state_key = await key_of_state(player.environment, state, player.config.environment)
                    after = replace(after, state_key=state_key)
                turn, observation = after, added
            except ToolError as error:
                turn = replace(turn, status=NodeStatus.ERROR, error=str(error))
                self.fail("tool", str(error), error.trace)
        node = self.add(parent, completion, observation, turn)
        self.turns[node] = turn
        self.generated_tokens += len(completion.token_ids)
        return node

    def close_or_go_on(
        self, turn: Turn, state: Any, result: StepResult, completion: Completion, num_context_tokens: int
    ) -> tuple[Turn, Sequence[int]]:
        """Return the turn with its status, and the observation's tokens: none where nothing will read them.

        Raises ToolError where the observation cannot be written in the dialect.
        """
        player = self.player
        num_calls, num_failed = result.num_tool_calls, result.num_failed_tool_calls
        turn = replace(turn, state=state, num_tool_calls=num_calls, num_failed_tool_calls=num_failed)
        turn = replace(turn, env_reward=result.reward)
        self.num_tool_calls += num_calls
        self.num_failed_tool_calls += num_failed
        if result.done:
            return replace(turn, status=NodeStatus.DONE), ()
        if turn.depth >= player.config.rollout.max_turns:
            return replace(turn, status=NodeStatus.TRUNCATED_TURNS), ()
        try:
            observation = player.dialect.observation_ids(result.observation, completion.token_ids)
        except UserError as error:  # a chat template that does not take these messages
            raise ToolError(str(error)) from error
        if num_context_tokens + len(completion.token_ids) + len(observation) >= player.max_context_tokens:
            return turn, ()
        text = player.tokenizer.decode(observation, skip_special_tokens=False)
        messages = tuple(result.observation)
        return replace(turn, status=NodeStatus.OPEN, observation=text, messages=messages), observation

    def add(self, parent: int, completion: Completion, observation: Sequence[int], turn: Turn) -> int:
        """Add a node: the sampled turn, then the observation."""
        num_sampled, num_tokens = len(completion.token_ids), len(completion.token_ids) + len(observation)
        tool_call, calls = None, self.player.dialect.find_calls(completion.text)
        if calls is not None:
            tool_call = np.zeros(num_tokens, dtype=np.bool_)
            tool_call[:num_sampled] = tokens_of(self.player.tokenizer, completion.token_ids, calls)
        return self.forest.add_node(
            parent,
            np.asarray([*completion.token_ids, *observation], dtype=np.uint32),
            np.arange(num_tokens) < num_sampled,
            _padded(completion.logprobs, num_tokens, 0.0),
            int(turn.status),
            completion.policy_version,
            round=turn.key[0],
            entropies=None if completion.entropies is None else _padded(completion.entropies, num_tokens, np.nan),
            confidence=np.nan if completion.confidence is None else completion.confidence,
            tool_call=tool_call,
            state_key=self.turns[parent].state_key,
        )

    def may_branch(self, nodes: Iterable[int]) -> list[bool]:
        """Of each of these nodes, whether an expansion may start there: turns that the agent went on from, the root."""
        rollout = self.player.config.rollout
        turns = [(node, self.turns[node]) for node in nodes]
        return [
            turn.status is NodeStatus.OPEN
            and (rollout.candidates == "all" if turn.depth else rollout.include_root)
            and self.siblings.may_draw(node)
            for node, turn in turns
        ]

    async def reward_closed(self) -> None:
        """Ask for the rewards of all leaves that have closed since the last call."""
        await self.reward([leaf for leaf in self.scorable() if leaf not in self.rewards])

    async def reward_kept(self) -> None:
        """Keep K of the leaves that can be scored, and ask for the rewards that are not known yet."""
        scorable, num_kept = self.scorable(), self.player.config.rollout.num_kept_leaves
        num_kept = min(num_kept or len(scorable), len(scorable))
        kept = [scorable[position] for position in keep_leaves(len(scorable), num_kept, self.key)]
        await self.reward([leaf for leaf in kept if leaf not in self.rewards])

    def scorable(self) -> list[int]:
        """Leaves that can be scored, in the order of their keys."""
        return [node for node in self.in_key_order() if self.turns[node].status in SCORABLE]

    async def reward(self, leaves: Sequence[int]) -> None:
        """Ask the reward functions for these leaves' rewards, once: a function sees all of them in one call."""
        if not leaves:
            return
        with self.player.rewarding.running():
            rewards = await self.player.rewards.reward([self.rollout(leaf) for leaf in leaves])
        settings = self.player.config.reward
        for leaf, given in zip(leaves, rewards, strict=True):
            self.rewards[leaf] = worth = told(given, settings, [*self.key, *self.turns[leaf].key])
            if worth.reward is not None:
                self.forest.set_reward(leaf, worth.reward)
            if worth.failure is not None:
                self.fail("reward", worth.failure.reason, worth.failure.trace)

    def fail(self, kind: Kind, reason: str, trace: tuple[str, ...] = ()) -> None:
        """Note what failed in this tree."""
        self.failures.append(Failure(kind, self.prompt.prompt_id, reason, self.tree_id, trace))

    def rollout(self, leaf: int) -> Rollout:
        """The path to `leaf` as a reward function sees it."""
        path = [self.turns[node] for node in self.forest.path(leaf)[1:]]
        messages: list[Message] = []
        for turn in path:
            messages += [{"role": "assistant", "content": turn.text}, *turn.messages]
        earned = [turn.env_reward for turn in path if turn.env_reward is not None]
        return Rollout(
            task=self.prompt.task,
            prompt=self.prompt_text,
            prompt_messages=self.prompt_messages,
            completion="".join(turn.text + turn.observation for turn in path),
            turns=tuple((turn.text, turn.observation) for turn in path),
            messages=tuple(messages),
            state=path[-1].state,
            env_reward=sum(earned) if earned else None,
        )

    def in_key_order(self) -> list[int]:
        """Node ids in the order of their keys, which is the order of the file: parents first, arrival ignored."""
        return sorted(self.turns, key=lambda node: self.turns[node].key)


def _padded(values: Sequence[float], num_tokens: int, filling: float) -> NDArray[np.float32]:
    """A column of a node: the sampled tokens' values, then those of the observation's."""
    column = np.full(num_tokens, filling, dtype=np.float32)
    column[: len(values)] = values
    return column
