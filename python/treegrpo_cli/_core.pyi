"""The native module: forests, scores, layouts. N nodes, T trees, U tokens, B rows; float64 unless said otherwise."""

from collections.abc import Sequence
from typing import Required, TypedDict, final, type_check_only

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from treegrpo_cli.trees.frames import Rows

_OptionValue = str | float | int | bool

__all__ = [
    "NO_PARENT",
    "ChainRows",
    "CoreError",
    "Forest",
    "Layout",
    "MicroBatch",
    "Scores",
    "derive_seed",
    "describe_estimators",
    "describe_selection_rules",
    "draw_by_scores",
    "estimator_options",
    "estimators",
    "keep_leaves",
    "resolve_options",
    "resolve_selection_options",
    "select_uniform",
]

NO_PARENT: int
"""The parent of a root in the `parent` column: 2**32 - 1."""

class CoreError(ValueError):
    """A caller's mistake; what every function and method here raises for one."""

    tree: int | None
    """The tree and the node of the forest that it is about, where it is about a node."""

    node: int | None
    reason: str
    """The message without that place."""

@type_check_only
class DescribedOption(TypedDict):
    """What there is to know of an option without giving it."""

    default: _OptionValue
    legal: str
    """What it may be, in words."""
    beside: str | None
    """`option=value` beside which it counts; elsewhere it is refused."""

@type_check_only
class Estimator(TypedDict):
    """How rewards become advantages; see `describe_estimators`."""

    name: str
    level: str
    """`leaf`: A(l), which a path's nodes take from their leaf; `node`: A(n); `both`: the sum of the two."""
    summary: str
    formula: str
    """One plain line: N is the normaliser, R a reward, V a value."""
    weighs: bool
    """Whether it gives each turn a weight of its own, in place of `loss.prefix_weight`; it stands in no sum."""
    reads_tokens: bool
    """Whether token ids matter to it, not the shape of trees and their rewards alone."""
    options: dict[str, DescribedOption]

@type_check_only
class SelectionRule(TypedDict):
    """How the nodes to expand are chosen; see `describe_selection_rules`."""

    name: str
    summary: str
    formula: str
    needs: list[str]
    """What it reads beside the shape of the trees: `rewards`, `entropies`, `logprobs`."""
    reads_prompt: bool
    """Whether it reads all trees of a candidate's prompt, or the candidate's own alone."""
    options: dict[str, DescribedOption]

@type_check_only
class LeafColumns(TypedDict):
    """One row a childless node, in the order of node ids, [L]."""

    node: NDArray[np.uint32]
    tree: NDArray[np.uint32]
    prompt: NDArray[np.uint32]
    depth: NDArray[np.uint32]
    status: NDArray[np.uint8]
    reward: NDArray[np.float64]
    """NaN = none."""
    path_tokens: NDArray[np.uint32]
    """Tokens from the root to the leaf."""
    gen_tokens: NDArray[np.uint32]
    """Those of them that the policy sampled."""
    same_as: NDArray[np.uint32]
    """The first row of the same prompt whose path holds the same tokens; its own place where there is none before."""

@type_check_only
class ScoreTerm(TypedDict, total=False):
    """An estimator in a sum of several."""

    estimator: Required[str]
    weight: float
    """What its advantages are multiplied by, 0 or more; 1."""
    mask: str
    """The sampled tokens that it counts for: `tool-calls`, else all."""
    options: dict[str, _OptionValue]

@type_check_only
class Explanation(TypedDict):
    """How a node came by its advantage: its own figures, then columns with an entry a comparison, [P].

    measured = factor * (raw - baseline) / scale, contribution = weight * measured. Leaf-level estimators compare the
    scored leaves at or below the node, which shows the mean of what they get; node-level ones the node itself, which
    adds that. The contributions of each of `nodes` add up to its part. Empty on a root, whose advantage is 0, and where
    no scored leaf is below.
    """

    node: int
    value: float | None
    advantage: float | None
    leaf_level: bool
    nodes: list[int]
    of_leaf: list[bool]
    """Whether it is what a leaf gets; else what the node gets beside it."""
    estimator: list[str]
    """Of which term."""
    mask: list[str | None]
    """The tokens that it counts for, None = all."""
    term: list[str]
    group: list[str]
    """What the raw value is compared with: those of the `prompt`, the `tree`, or the `siblings`."""
    group_size: list[int]
    group_mean: list[float]
    group_std: list[float | None]
    """By the estimator's ddof; None where the group is too small to have one."""
    case: list[str]
    """`compared`; `flat`: the group's values are equal; `single`: there is one."""
    raw: list[float]
    baseline: list[float]
    factor: list[float]
    """k / (k - 1) under `center=loo`; 0 where the group says nothing."""
    scale: list[float]
    measured: list[float]
    weight: list[float]
    """That of the estimator's term counts in it; 0 on a comparison that another one is made of."""
    contribution: list[float]

@final
class Forest:
    """Rollout trees as append-only tables. Every method raises ValueError for a row that breaks an invariant.

    Any thread may read a forest while others read or grow it: a reader sees it as it stood when the call began.
    """

    def __new__(cls) -> Forest: ...
    @staticmethod
    def from_columns(
        *,
        prompt: NDArray[np.uint32],
        parent: NDArray[np.uint32],
        tree: NDArray[np.uint32],
        status: NDArray[np.uint8],
        reward: NDArray[np.float64],
        policy_version: NDArray[np.uint32] | None = None,
        token_start: NDArray[np.uint64] | None = None,
        token_ids: NDArray[np.uint32] | None = None,
        sampled: NDArray[np.bool_] | None = None,
        logprobs: NDArray[np.float32] | None = None,
        entropy: NDArray[np.float64] | None = None,
        round: NDArray[np.uint32] | None = None,
        entropies: NDArray[np.float32] | None = None,
        confidence: NDArray[np.float64] | None = None,
        tool_call: NDArray[np.bool_] | None = None,
        state_key: NDArray[np.uint64] | None = None,
    ) -> Forest:
        """Take whole trees at once: prompt [T]; parent, tree, status, reward (NaN = none), policy_version, round,
        entropy, confidence (NaN = not known), state_key (0 = not known) [N]; token_start [N + 1]; token_ids, sampled,
        tool_call, logprobs, entropies (nats; NaN = not known) [U]. Where a node's entropy is not given it is the mean
        over its sampled tokens' entropies."""

    @staticmethod
    def from_chains(
        *,
        row_start: NDArray[np.uint64],
        token_ids: NDArray[np.uint32],
        sampled: NDArray[np.bool_],
        prompt: NDArray[np.uint32],
        reward: NDArray[np.float64],
        logprobs: NDArray[np.float32] | None = None,
        status: NDArray[np.uint8] | None = None,
        policy_version: NDArray[np.uint32] | None = None,
        logprob_tolerance: float = ...,
    ) -> tuple[Forest, NDArray[np.uint32]]:
        """Merge plain rows into trees, one a prompt; return the forest and the leaf of each row, [B].

        Row b is `row_start[b]:row_start[b + 1]` of the token columns [U]; prompt, reward (NaN = none), status (of the
        leaf; done) and policy_version (0) [B]. The root holds what the rows of a prompt have in common before anything
        was sampled. Below it rows go together while their tokens are equal, sampled or not in both, and, where
        sampled, of one policy version and with log-probabilities no further apart than `logprob_tolerance` (nats; any
        by default): the first row's stand. A node ends where rows part, and where a turn ends. A row that ends where
        another one goes on, or as another one ends, has a leaf without tokens. Trees come in the order of their
        prompts' first rows, the leaves of a tree in the order of its rows.
        """

    @staticmethod
    def concat(forests: Sequence[Forest], orders: Sequence[NDArray[np.uint32]] | None = None) -> Forest:
        """Join forests, all columns: trees and nodes are numbered on, prompts stay as they are.

        `orders` says for each forest in which order its nodes come: every node once, a parent before its child.
        """

    @property
    def num_trees(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def knows_rounds(self) -> bool:
        """Whether the column `round` was told: by every `add_node`, by `from_columns` where it was given."""

    @property
    def knows_logprobs(self) -> bool:
        """The same of `logprobs`."""

    @property
    def knows_tool_calls(self) -> bool:
        """The same of `tool_call`: by every `add_node` of sampled tokens."""

    def add_tree(self, prompt: int, token_ids: NDArray[np.uint32]) -> int:
        """Plant a tree whose root holds the prompt's tokens; return the root's node id."""

    def add_node(
        self,
        parent: int,
        token_ids: NDArray[np.uint32],
        sampled: NDArray[np.bool_],
        logprobs: NDArray[np.float32],
        status: int,
        policy_version: int,
        round: int = ...,
        entropies: NDArray[np.float32] | None = None,
        confidence: float = ...,
        tool_call: NDArray[np.bool_] | None = None,
        state_key: int = ...,
    ) -> int:
        """Add a turn below an open node; return its node id.

        `round`: of its tree's rounds of expansion, 0 with the first chain, no smaller than its parent's. `entropies`:
        of the distributions that the tokens were sampled from, nats, NaN where none was or it is not known; the node's
        `entropy` is their mean. `confidence`: of the whole turn, in the sampler's measure; NaN = not known.
        `tool_call`: which of the sampled tokens are part of a tool call; None = not known. `state_key`: of the
        environment's state before the turn, equal for equal states; 0 = not known.
        """

    def set_reward(self, node: int, reward: float) -> None:
        """Give a closed leaf its outcome reward, once."""

    def context(self, node: int) -> NDArray[np.uint32]:
        """The tokens of the path from the root to `node`."""

    def path(self, node: int) -> NDArray[np.uint32]:
        """Node ids from the root to `node`."""

    def leaves(self, tree: int) -> NDArray[np.uint32]:
        """Childless nodes of one tree, ascending."""

    def gen_tokens(self) -> NDArray[np.uint32]:
        """Tokens that the policy sampled, [N]."""

    def leaf_columns(self) -> LeafColumns:
        """A table with a row a leaf, what statistics of rollouts are made of."""

    def select(
        self,
        candidates: NDArray[np.uint32],
        n: int,
        key: Sequence[int],
        rule: str = "uniform",
        options: dict[str, _OptionValue] | None = None,
        *,
        prior: float = 0.5,
        reward_range: tuple[float, float] | None = None,
        rewards_asked: bool = False,
    ) -> NDArray[np.uint32]:
        """Draw up to n of the candidates (node ids) by a selection rule, pure in `key`; a rule that draws with
        replacement may name one several times, one that is scored puts the best first.

        Candidates have a turn below them. `prior`, the run's mean reward so far, and `reward_range`, what is scaled to
        0 and 1, are for `contrast`. Raises ValueError where nothing of what the rule needs is there; with
        `rewards_asked` a forest without a reward will do: those that were asked for all failed.
        """

    def selection_scores(
        self,
        candidates: NDArray[np.uint32],
        rule: str,
        options: dict[str, _OptionValue] | None = None,
        *,
        prior: float = 0.5,
        reward_range: tuple[float, float] | None = None,
        rewards_asked: bool = False,
    ) -> NDArray[np.float64]:
        """The score of each candidate, or its chance (under `contrast` in proportion), [C]; under `uniform` all are 1.

        Arguments and errors as in `select`.
        """

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Read-only views of all columns, without copies; no row can be added afterwards."""

    def snapshot(self) -> Forest:
        """The forest as it stands, without a copy; both may grow on, each for itself."""

    def to_pandas(self, rows: Rows = "nodes") -> pd.DataFrame:
        """A frame with a row a node, a leaf or a token, of the forest as it stands; see `trees.frames`."""

    def to_arrow(self, rows: Rows = "nodes") -> pa.Table:
        """The same as a table of pyarrow's, without a copy of the forest's own columns."""

    def _repr_html_(self) -> str: ...
    def score(self, terms: str | Sequence[ScoreTerm], options: dict[str, _OptionValue] | None = None) -> Scores:
        """Values and advantages of the whole forest; a group is the trees of one prompt.

        `terms`: an estimator, with its `options`, or the terms of a sum.
        """

    def given_scores(
        self,
        advantage: NDArray[np.float64],
        *,
        leaf_level: bool,
        estimator: str = "given",
        beside: NDArray[np.float64] | None = None,
        weight: NDArray[np.float64] | None = None,
        unmasked: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None] | None = None,
    ) -> Scores:
        """Scores that somebody else computed: `advantage` [N], read at scored leaves where it is leaf-level, else at
        nodes that have one below. Values are leaf-means.

        `beside` [N]: advantages of the other level, to be added · `weight` [N]: what a node counts, not |L|^p ·
        `unmasked`: of leaves and of nodes, [N] or None each: what tokens that are part of no tool call get, where that
        is something else.
        """

    def chain_rows(self, scores: Scores, prefix_weight: float = 1.0) -> ChainRows:
        """One row a scored leaf, in the order of node ids, shared prefixes repeated."""

    def pack(
        self,
        scores: Scores,
        prefix_weight: float = 1.0,
        *,
        shared: bool = True,
        row_mean: bool = False,
        prompts: NDArray[np.uint32] | None = None,
    ) -> Layout:
        """Lay out the paths of all scored leaves for training, or of those of the trees of `prompts`.

        With `shared`, paths that begin with the same tokens compute them once, whichever turns, trees or prompts they
        belong to; children come in the order of node ids. Else each path is a row of its own, longest first. Nodes
        without a scored leaf below are left out; so are prompts that have no tree. With `row_mean`, each of the T
        targets of a row counts 1/T, so that all rows count the same.

        Raises ValueError for the scores of another forest, or of this one before it changed, and for a
        `prefix_weight` that is negative or whose weights are not finite.
        """

@final
class Scores:
    """Per node; NaN stands for null, where no scored leaf is below."""

    @property
    def forest(self) -> Forest:
        """The forest that was scored, as a snapshot. Raises ValueError where it has changed since."""

    def to_pandas(self, rows: Rows = "nodes") -> pd.DataFrame:
        """That of the forest with values and advantages. Raises ValueError where the forest has changed since."""

    def to_arrow(self, rows: Rows = "nodes") -> pa.Table:
        """The same as a table of pyarrow's."""

    def _repr_html_(self) -> str: ...
    @property
    def estimator(self) -> str:
        """The estimator's name; of a sum all names, with their weights where these are not 1."""

    @property
    def options(self) -> dict[str, _OptionValue]:
        """Every option of the estimator, resolved; empty for a sum."""

    @property
    def terms(self) -> list[ScoreTerm]:
        """Every term with its weight and all its options; empty where the scores were given."""

    @property
    def leaf_level(self) -> bool:
        """Whether there are advantages of leaves, of which inner nodes show a mean."""

    @property
    def depth(self) -> NDArray[np.uint32]: ...
    @property
    def num_leaves(self) -> NDArray[np.uint32]:
        """Scored leaves below each node, itself included."""

    @property
    def value(self) -> NDArray[np.float64]: ...
    @property
    def advantage(self) -> NDArray[np.float64]:
        """What is shown: the mean of A(l) over the scored leaves below, plus a(n), of all terms."""

    @property
    def leaf_advantage(self) -> NDArray[np.float64] | None:
        """A(l) at scored leaves, NaN elsewhere: the sum of the leaf-level terms; None where there are none."""

    @property
    def node_advantage(self) -> NDArray[np.float64] | None:
        """a(n), 0 on a root: the sum of the node-level terms; None where there are none."""

    @property
    def weight(self) -> NDArray[np.float64] | None:
        """What each node counts in place of |L|^p, where the estimator says so; else None."""

    @property
    def unmasked_advantage(self) -> NDArray[np.float64] | None:
        """`advantage` without the terms that count for tool calls alone: what the other tokens get. None without such
        terms; then these get `advantage` too."""

    @property
    def unmasked_leaf_advantage(self) -> NDArray[np.float64] | None:
        """The A(l) in it; None where there are none."""

    @property
    def unmasked_node_advantage(self) -> NDArray[np.float64] | None:
        """The a(n) in it; None where there are none."""

    def explain(self, node: int) -> Explanation:
        """Score the forest once more and tell what made the node's advantage.

        Raises ValueError where the forest has changed, and for scores that were given.
        """

@final
class ChainRows:
    """Rows of tokens from root to leaf, flat: row b is `row_start[b]:row_start[b + 1]`."""

    @property
    def row_start(self) -> NDArray[np.uint64]: ...
    @property
    def input_ids(self) -> NDArray[np.uint32]: ...
    @property
    def loss_mask(self) -> NDArray[np.bool_]: ...
    @property
    def logprobs(self) -> NDArray[np.float32]: ...
    @property
    def advantages(self) -> NDArray[np.float32]: ...
    @property
    def weights(self) -> NDArray[np.float32]:
        """|L(n)|^(p - 1) of each token's node, or its own weight over |L(n)|."""

    @property
    def policy_version(self) -> NDArray[np.uint32]: ...
    @property
    def node_ids(self) -> NDArray[np.uint32]:
        """The node of each token."""

    @property
    def group(self) -> NDArray[np.uint32]:
        """The prompt of each row, [B]."""

    @property
    def tree(self) -> NDArray[np.uint32]:
        """The tree of each row, [B]."""

    @property
    def reward(self) -> NDArray[np.float64]:
        """The reward of each row's leaf, [B]."""

    @property
    def leaf(self) -> NDArray[np.uint32]:
        """The leaf of each row, a node id, [B]."""

@final
class Layout:
    """Tokens in depth-first order, and the targets of their turns. U tokens, R runs, B scored leaves; uint32."""

    @property
    def token_ids(self) -> NDArray[np.uint32]:
        """Tokens to compute, [U]; a read-only view, like the others."""

    @property
    def positions(self) -> NDArray[np.uint32]:
        """The number of tokens above each, [U]."""

    @property
    def parent_token(self) -> NDArray[np.uint32]:
        """Index of the token above, which predicts this one, [U]; `NO_PARENT` at a start."""

    @property
    def subtree_end(self) -> NDArray[np.uint32]:
        """First index behind the tokens below, [U]: q sees k where k <= q < subtree_end[k]."""

    @property
    def run_start(self) -> NDArray[np.uint32]:
        """Maximal runs in which each token's parent is the one in front of it, [R + 1]."""

    @property
    def path_tokens(self) -> NDArray[np.uint32]:
        """Length of each scored leaf's path, in the order of leaf ids, [B]."""

    @property
    def num_targets(self) -> int:
        """Sampled tokens to train, of all turns; one sampled at a start has nothing in front, and is none."""

    @property
    def weighted_tokens(self) -> float:
        """The sum of the targets' weights: the denominator of a mean over tokens.

        With `row_mean` it is the number of rows that have targets.
        """

    def micro_batches(self, max_tokens: int) -> list[MicroBatch]:
        """Cut into forwards of at most `max_tokens`, where no single run or row (with its path) is longer.

        Shared: subtrees stay whole where they fit, and the path above a cut is computed again. Rows: as many as fit
        with their padding. A turn is trained where its last token is owned. Raises ValueError if `max_tokens` is 0.
        """

@final
class MicroBatch:
    """One forward. U tokens, R runs, S segments, E edges, P predictors, Q targets; indices are of this micro-batch.

    The columns over tokens mean what they mean in `Layout`. Targets are sorted by predictor, then by turn.
    """

    @property
    def num_context(self) -> int:
        """First tokens that an earlier micro-batch owns: a path computed again."""

    @property
    def token_ids(self) -> NDArray[np.uint32]:
        """[U]."""

    @property
    def positions(self) -> NDArray[np.uint32]:
        """[U]."""

    @property
    def parent_token(self) -> NDArray[np.uint32]:
        """[U]; `NO_PARENT` at a start."""

    @property
    def subtree_end(self) -> NDArray[np.uint32]:
        """[U]."""

    @property
    def run_start(self) -> NDArray[np.uint32]:
        """[R + 1]. A token sees those of its run up to itself, and the segments that it is a query of."""

    @property
    def key_start(self) -> NDArray[np.uint32]:
        """First key of each segment, [S]: the parts of a run that later runs see in full."""

    @property
    def key_end(self) -> NDArray[np.uint32]:
        """Behind the last key, [S]."""

    @property
    def query_start(self) -> NDArray[np.uint32]:
        """First query, [S]: where the keys' run ends."""

    @property
    def query_end(self) -> NDArray[np.uint32]:
        """Behind the last query, [S]."""

    @property
    def edge_start(self) -> NDArray[np.uint32]:
        """Maximal parts without a branch, depth first, [E + 1]."""

    @property
    def edge_parent(self) -> NDArray[np.uint32]:
        """The edge above, [E]; `NO_PARENT` at a start."""

    @property
    def predictors(self) -> NDArray[np.uint32]:
        """Tokens whose logits are read, ascending, [P]."""

    @property
    def target_row(self) -> NDArray[np.uint32]:
        """Which predictor predicts each target, ascending, [Q]."""

    @property
    def target_ids(self) -> NDArray[np.uint32]:
        """The tokens that were sampled, [Q]."""

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Their log-probabilities when they were sampled, nats, [Q]."""

    @property
    def gain(self) -> NDArray[np.float64]:
        """|L|^(p - 1) times the sum of max(A, 0) over the turn's scored leaves, [Q]; in rows the row's share.

        A = A(l) + a(n). A weight of the node's own stands in place of |L|^p, here and below.
        """

    @property
    def penalty(self) -> NDArray[np.float64]:
        """The same of min(A, 0), [Q]."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """|L|^p, [Q]; in rows |L|^(p - 1). With `row_mean`, each row's part is divided by its targets, as in `gain`."""

    @property
    def gain_weights(self) -> NDArray[np.float64]:
        """The part of the weight that is of rows with A > 0, [Q]."""

    @property
    def penalty_weights(self) -> NDArray[np.float64]:
        """The same with A < 0, [Q]."""

    @property
    def turn(self) -> NDArray[np.uint32]:
        """Which turn of this micro-batch, from 0, [Q]."""

    @property
    def row(self) -> NDArray[np.uint32] | None:
        """Which row of the layout, longest first, [Q]; None where prefixes are shared."""

def estimators() -> list[str]:
    """Names of all estimators."""

def describe_estimators() -> list[Estimator]:
    """What there is to know of every estimator."""

def describe_selection_rules() -> list[SelectionRule]:
    """What there is to know of every selection rule."""

def estimator_options(estimator: str) -> dict[str, _OptionValue]:
    """Options of an estimator with their defaults. Raises ValueError for an unknown one."""

def resolve_options(estimator: str, options: dict[str, _OptionValue]) -> dict[str, _OptionValue]:
    """All options of an estimator, `options` over its defaults; text that reads as a number is one.

    Raises ValueError for an unknown option, with those that there are, or a value out of range.
    """

def resolve_selection_options(rule: str, options: dict[str, _OptionValue]) -> dict[str, _OptionValue]:
    """The same of a selection rule."""

def draw_by_scores(
    scores: NDArray[np.float64], n: int, key: Sequence[int], temperature: float = 0.0, replacement: bool = False
) -> NDArray[np.uint32]:
    """Draw up to n positions by their scores, the best first, pure in `key`; a score of -inf is never drawn.

    At `temperature` 0 the n highest, ties in an order of the key. Above it with a chance in proportion to
    exp(score / temperature): no position twice (Gumbel-top-n), or n independent draws with `replacement`. So the
    logarithms of scores at temperature 1 draw in proportion to the scores. Raises ValueError for a score that is NaN.
    """

def select_uniform(num_candidates: int, n: int, replacement: bool, key: Sequence[int]) -> NDArray[np.uint32]:
    """Draw n of num_candidates positions, pure in `key`; without replacement at most all of them.

    Raises ValueError for more than 2**24 draws.
    """

def keep_leaves(num_leaves: int, k: int, key: Sequence[int]) -> NDArray[np.uint32]:
    """Keep k of num_leaves positions, ascending, drawn uniformly without replacement, pure in `key`."""

def derive_seed(key: Sequence[int]) -> int:
    """A seed in 0 .. 2**63 - 1, pure in `key`, the same for ever."""
