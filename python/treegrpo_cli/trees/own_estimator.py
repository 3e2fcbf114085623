"""`file.py:function` -> an estimator of the user's own: columns of a prompt's trees in, an advantage a node out.

The function is `credit(columns, **options)`. `columns` maps names to read-only arrays of the nodes of one prompt's
trees, [N], a node behind its parent:

    parent, tree, prompt, depth, round, status      ids; 2**32 - 1 above a root; `round` 0 = of a first chain
    reward                                          of a leaf; NaN = unscored
    num_leaves, value                               scored leaves below, and their mean reward; NaN where there is none
    num_children, num_tokens, num_sampled           counts
    logprob, entropy, confidence                    summed over sampled tokens; their means; NaN = not known

beside the token columns `token_ids`, `sampled`, `tool_call`, `logprobs`, `entropies`, and `token_start`, [N + 1].
It returns [N]
finite numbers, read at nodes that have a scored leaf below, roots aside, or where the function has
`level = "leaf"` at scored leaves, whose advantage all turns of their paths take. The rest does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli._core import NO_PARENT, CoreError
from treegrpo_cli.errors import UserCodeError, UserError
from treegrpo_cli.trees.node_columns import by_prompt, columns_of
from treegrpo_cli.user_code import keyword_options, load_dotted, looking_at_answers
from treegrpo_cli.user_code.threads import in_thread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli._core import Forest, Scores

Function = Callable[..., Any]
LEVELS = ("leaf", "node")
TIMEOUT_S = 60.0


def is_own(name: object) -> bool:
    """Whether it names, or is, a function of the user's; names of ours have no colon."""
    return callable(name) or (isinstance(name, str) and ":" in name)


class AnswerError(UserError):
    """A function of the user's raised, or what it returned is none; `node` is the first of the prompt's."""

    def __init__(self, message: str, node: int, trace: Sequence[str] = ()) -> None:
        self.node = node
        super().__init__(message, trace)


@dataclass(frozen=True, slots=True)
class OwnEstimator:
    """A function of the user's with its options."""

    name: str
    function: Function
    options: Mapping[str, Any]
    level: str
    key: str
    """The setting that names it."""

    def score(self, forest: Forest, timeout_s: float = TIMEOUT_S) -> Scores:
        """Score a forest, prompt by prompt, but for those without a reward.

        Raises AnswerError for a mistake of the function, CoreError where it is at a node.
        """
        advantage = np.full(forest.num_nodes, np.nan)
        for nodes, columns in by_prompt(columns_of(forest)):
            if not np.isnan(columns["reward"]).all():
                advantage[nodes] = self._asked(columns, int(nodes[0]), timeout_s)
        if self.level == "node":
            advantage[forest.columns()["parent"] == NO_PARENT] = 0.0
        try:
            return forest.given_scores(advantage, leaf_level=self.level == "leaf", estimator=self.name)
        except CoreError as error:
            error.reason = f"{self.name}: {error.reason}"
            raise

    def _asked(self, columns: Mapping[str, NDArray[Any]], first: int, timeout_s: float) -> NDArray[np.float64]:
        try:
            answer = in_thread(lambda: self.function(columns, **self.options)).result(timeout_s)
            with looking_at_answers():
                advantage = np.asarray(answer)
        except TimeoutError:
            raise self._error(f"no answer within {timeout_s:g} s (advantage.timeout_s)", first) from None
        except UserCodeError as error:
            raise self._error(f"raised {error.reason}", first, error.trace) from error
        num_nodes = len(columns["parent"])
        if advantage.shape != (num_nodes,):
            raise self._error(f"must return {num_nodes} advantages, one a node, got {_shape(advantage)}", first)
        if advantage.dtype.kind not in "biuf":
            raise self._error(f"must return numbers, got {advantage.dtype}", first)
        return advantage.astype(np.float64)

    def _error(self, reason: str, node: int, trace: Sequence[str] = ()) -> AnswerError:
        return AnswerError(f"{self.key} {self.name}: {reason}", node, trace)

    def term(self, weight: float = 1.0) -> dict[str, Any]:
        """What the tree file says of it."""
        options = {name: _plain(value) for name, value in self.options.items()}
        return {"estimator": self.name, "weight": weight, "options": options, "level": self.level}


def load_own_estimator(given: str | Function, options: Mapping[str, Any], key: str) -> OwnEstimator:
    """Return the estimator that a path or function is. Raises UserError where it is none, or has other options."""
    function = load_dotted(given, key) if isinstance(given, str) else given
    name = given if isinstance(given, str) else _name_of(given)
    if not callable(function):
        raise UserError(f"{key}: {name} is no function")
    if iscoroutinefunction(function):
        raise UserError(f"{key}: {name} is async: an estimator is a plain function")
    level = getattr(function, "level", "node")
    if level not in LEVELS:
        raise UserError(f"{key}: {name} has level {level!r:.60}, expected 'leaf' or 'node'")
    resolved = keyword_options(function, options, key, num_arguments=1)
    return OwnEstimator(name, function, resolved, level, key)


def _name_of(function: Function) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}:{name}"


def _plain(value: Any) -> Any:
    """The value as JSON has it, or what Python shows of it."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float) and isfinite(value) and abs(value) < 2**63:
        return value
    return repr(value)[:200]


def _shape(advantage: NDArray[np.float64]) -> str:
    return str(len(advantage)) if advantage.ndim == 1 else f"an array of shape {advantage.shape}"
