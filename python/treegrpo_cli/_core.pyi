"""The native module: forests, scores, draws. N nodes, T trees, U tokens, B rows; float64 unless said otherwise."""

from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

_OptionValue = str | float | int | bool

__all__ = [
    "NO_PARENT",
    "ChainRows",
    "Forest",
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
