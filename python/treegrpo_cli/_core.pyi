"""The native module: forests, scores, layouts. N nodes, T trees, U tokens, B rows; float64 unless said otherwise."""

from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

_OptionValue = str | float | int | bool

__all__ = [
    "NO_PARENT",
    "ChainRows",
    "Forest",
    "Layout",
    "MicroBatch",
    "Scores",
    "derive_seed",
    "estimator_options",
    "estimators",
    "keep_leaves",
    "resolve_options",
    "select_uniform",
]

NO_PARENT: int
"""The parent of a root in the `parent` column: 2**32 - 1."""

@final
class Forest:
    """Rollout trees as append-only tables. Every method raises ValueError for a row that breaks an invariant."""

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
    ) -> Forest:
        """Take whole trees at once: prompt [T]; parent, tree, status, reward (NaN = none), policy_version,
        entropy (NaN = none) [N]; token_start [N + 1]; token_ids, sampled, logprobs (nats) [U]."""

    @property
    def num_trees(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
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
    ) -> int:
        """Add a turn below an open node; return its node id."""

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

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Read-only views of all columns, without copies; no row can be added afterwards."""

    def score(self, estimator: str, options: dict[str, _OptionValue]) -> Scores:
        """Values and advantages of the whole forest; a group is the trees of one prompt."""

    def chain_rows(self, scores: Scores, prefix_weight: float = 1.0) -> ChainRows:
        """The training batch: one row a scored leaf."""

    def pack(
        self,
        scores: Scores,
        prefix_weight: float = 1.0,
        *,
        shared: bool = True,
        prompts: NDArray[np.uint32] | None = None,
    ) -> Layout:
        """Lay out the paths of all scored leaves for training, or of those of the trees of `prompts`.

        With `shared`, paths that begin with the same tokens compute them once, whichever turns, trees or prompts they
        belong to; children come in the order of node ids. Else each path is a row of its own, longest first. Nodes
        without a scored leaf below are left out; so are prompts that have no tree.

        Raises ValueError for the scores of another forest, or of this one before a reward was set, and for a
        `prefix_weight` that is negative or not finite.
        """

@final
class Scores:
    """Per node; NaN stands for null, where no scored leaf is below."""

    @property
    def estimator(self) -> str: ...
    @property
    def options(self) -> dict[str, _OptionValue]:
        """Every option of the estimator, resolved."""

    @property
    def leaf_level(self) -> bool:
        """Whether advantages belong to leaves, and inner nodes show a mean."""

    @property
    def depth(self) -> NDArray[np.uint32]: ...
    @property
    def num_leaves(self) -> NDArray[np.uint32]:
        """Scored leaves below each node, itself included."""

    @property
    def value(self) -> NDArray[np.float64]: ...
    @property
    def advantage(self) -> NDArray[np.float64]: ...
    @property
    def leaf_advantage(self) -> NDArray[np.float64] | None:
        """A(l) at scored leaves, NaN elsewhere; None under a node-level estimator."""

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
        """|L(n)|^(p - 1) of each token's node."""

    @property
    def policy_version(self) -> NDArray[np.uint32]: ...
    @property
    def group(self) -> NDArray[np.uint32]:
        """The prompt of each row, [B]."""

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
        """The sum of the targets' weights: the denominator of a mean over tokens."""

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
        """First key of each segment, [S]: stretches of a run that later runs see in full."""

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
        """Maximal stretches without a branch, depth first, [E + 1]."""

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
        """|L|^(p - 1) times the sum of max(A, 0) over the turn's scored leaves, [Q]; in rows the row's share."""

    @property
    def penalty(self) -> NDArray[np.float64]:
        """The same of min(A, 0), [Q]."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """|L|^p, [Q]; in rows |L|^(p - 1)."""

    @property
    def turn(self) -> NDArray[np.uint32]:
        """Which turn of this micro-batch, from 0, [Q]."""

    @property
    def row(self) -> NDArray[np.uint32] | None:
        """Which row of the layout, longest first, [Q]; None where prefixes are shared."""

def estimators() -> list[str]:
    """Names of all estimators."""

def estimator_options(estimator: str) -> dict[str, _OptionValue]:
    """Options of an estimator with their defaults. Raises ValueError for an unknown one."""

def resolve_options(estimator: str, options: dict[str, _OptionValue]) -> dict[str, _OptionValue]:
    """All options of an estimator, `options` over its defaults; text that reads as a number is one.

    Raises ValueError for an unknown option, with those that there are, or a value out of range.
    """

def select_uniform(num_candidates: int, n: int, replacement: bool, key: Sequence[int]) -> NDArray[np.uint32]:
    """Draw n of num_candidates positions, pure in `key`; without replacement at most all of them."""

def keep_leaves(num_leaves: int, k: int, key: Sequence[int]) -> NDArray[np.uint32]:
    """Keep k of num_leaves positions, ascending, drawn uniformly without replacement, pure in `key`."""

def derive_seed(key: Sequence[int]) -> int:
    """A seed in 0 .. 2**63 - 1, pure in `key`, the same for ever."""
