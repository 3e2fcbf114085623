"""`file.py:function` -> a selection rule of the user's own: columns in, a score a candidate out.

The function is `rule(columns, candidates, **options)`. `candidates` are node ids, [C]; `columns` maps names to
read-only arrays with an entry a node, [N], a node behind its parent:

    parent, tree, prompt, depth, round, status      ids; 2**32 - 1 above a root; `round` 0 = of a first chain
    reward                                          of a leaf; NaN = none
    num_leaves, value                               scored leaves below, and their mean reward; NaN where there is none
    num_children, num_tokens, num_sampled           counts
    logprob, entropy, confidence                    summed over sampled tokens; their means; NaN = not known

beside the token columns `token_ids`, `sampled`, `logprobs`, `entropies`, and `token_start`, [N + 1]. Higher scores are
drawn first, no node twice, -inf never; with `temperature` above 0 draws are in proportion to exp(score / temperature),
and with `replacement` a node may come twice. Rewards are asked for before, unless the function has
`needs_rewards = False`; entropies are known where it has `needs_entropies = True`. It sees its own tree, or with
`reads_prompt = True` all trees of the prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli._core import draw_by_scores
from treegrpo_cli.errors import NoAnswerError, UserCodeError, UserError
from treegrpo_cli.trees.node_columns import columns_of, read_only
from treegrpo_cli.user_code import call, keyword_options, load_dotted, looking_at_answers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from treegrpo_cli._core import Forest
    from treegrpo_cli.config import SelectionConfig
    from treegrpo_cli.rollout.selection import Candidates

KEY = "selection.rule"


@dataclass(frozen=True, slots=True)
class OwnRule:
    """A function of the user's."""

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    temperature: float
    replacement: bool
    timeout_s: float
    needs_rewards: bool
    reads_prompt: bool
    needs_entropies: bool

    @property
    def weighs_prompts(self) -> bool:
        """Scores of a user's own need not compare across prompts."""
        return False

    async def scores(self, candidates: Candidates, nodes: NDArray[np.uint32]) -> NDArray[np.float64]:
        """The function's score of each of these candidates, [C]. Raises UserError for any mistake of it.

        It is asked tree by tree, unless it reads the prompt's, also where the candidates are of several.
        """
        if self.reads_prompt:
            return await self._ask(candidates.forest, nodes)
        scores = np.empty(len(nodes), dtype=np.float64)
        for places, tree, own in candidates.apart(nodes):
            scores[places] = await self._ask(tree, own)
        return scores

    async def _ask(self, forest: Forest, nodes: NDArray[np.uint32]) -> NDArray[np.float64]:
        columns = columns_of(forest)
        ask = functools.partial(self.function, columns, read_only(nodes.copy()), **self.options)
        try:
            answer = await call(ask, timeout_s=self.timeout_s, urgent=False)
            with looking_at_answers():
                scores = np.array(answer, dtype=np.float64)
        except NoAnswerError as error:
            raise UserError(f"{KEY} {self.name}: {error.reason} (selection.timeout_s)") from error
        except UserCodeError as error:
            raise UserError(f"{KEY} {self.name}: raised {error.reason}", error.trace) from error
        if scores.shape != nodes.shape:
            raise UserError(
                f"{KEY} {self.name}: must return {len(nodes)} scores, one a candidate, got {_shape(scores)}"
            )
        if not (scores < np.inf).all():
            raise UserError(f"{KEY} {self.name}: must return finite scores, got {scores[~(scores < np.inf)][0]}")
        return scores

    async def draw(
        self, candidates: Candidates, nodes: NDArray[np.uint32], n: int, key: Sequence[int]
    ) -> NDArray[np.uint32]:
        """Draw up to n of these candidates by the function's scores, pure in `key`."""
        scores = await self.scores(candidates, nodes)
        places = draw_by_scores(scores, n, key, self.temperature, self.replacement)
        return nodes[places]


def load_own_rule(config: SelectionConfig) -> OwnRule:
    """Return the function that the config names. Raises UserError where it is none, or has other options."""
    function = load_dotted(config.rule, KEY)
    if not callable(function):
        raise UserError(f"{KEY}: {config.rule} is no function")
    options = keyword_options(function, config.options, KEY, num_arguments=2)
    return OwnRule(
        config.rule,
        function,
        options,
        config.temperature,
        config.replacement,
        config.timeout_s,
        needs_rewards=bool(getattr(function, "needs_rewards", True)),
        reads_prompt=bool(getattr(function, "reads_prompt", False)),
        needs_entropies=bool(getattr(function, "needs_entropies", False)),
    )


def _shape(scores: NDArray[np.float64]) -> str:
    return str(len(scores)) if scores.ndim == 1 else f"an array of shape {scores.shape}"
