"""Flipped rewards, every way, with its chance -> what estimators keep: a table of docs/concepts/adaptive-credit.md."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from treegrpo_cli._core import Forest, estimators

from tests.enumeration.agents import AGENTS
from tests.enumeration.expected import Enumerated, forest_of
from tests.enumeration.growing import RULES, Agent, Floats, outcomes

LEVELS = (0.0, 0.1, 0.2, 0.3)
TREES, CHAINS = (2, 1, 1), (4, 0, 0)
"""Trees, draws a tree in each round, rounds: four leaves."""

PLAIN = {"center": "loo", "scale": "none"}
ROWS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "4 chains, `grpo`": ("grpo", {}, CHAINS),
    "4 chains, `grpo`, `center=loo`, `scale=none`": ("grpo", PLAIN, CHAINS),
    "`grpo`, `center=loo`, `scale=none`": ("grpo", PLAIN, TREES),
    **{f"`{name}`": (name, {}, TREES) for name in estimators()},
}
"""What a row is called -> the estimator, its options, and what is grown."""


class Kept(NamedTuple):
    cosine: float
    share: float


@cache
def grown(agent: str, size: tuple[int, int, int]) -> tuple[Enumerated, list[Forest]]:
    """All outcomes, and their forest with the rewards of each set of their leaves flipped: bit i flips the i-th."""
    enumerated = forest_of(AGENTS[agent], outcomes(AGENTS[agent], RULES["uniform"], *size))
    leaves, columns = enumerated.forest.leaf_columns(), dict(enumerated.forest.columns())
    place = np.arange(len(leaves["node"])) - np.searchsorted(leaves["prompt"], leaves["prompt"])
    forests = []
    for flips in range(2 ** (int(place.max()) + 1)):
        reward = columns["reward"].copy()
        flipped = leaves["node"][flips >> place & 1 == 1]
        reward[flipped] = 1 - reward[flipped]
        names = ("prompt", "parent", "tree", "status", "round", "token_start", "token_ids", "sampled", "logprobs")
        forests.append(Forest.from_columns(reward=reward, **{name: columns[name] for name in names}))  # type: ignore[arg-type]
    return enumerated, forests


def updates(agent: Agent, enumerated: Enumerated, forest: Forest, estimator: str, options: dict[str, Any]) -> Floats:
    """Each prompt's update, [prompts, states]."""
    scores, columns = forest.score(estimator, options), forest.columns()
    weight = scores.num_leaves if scores.weight is None else scores.weight
    drawn = enumerated.at >= 0
    prompt = columns["prompt"][columns["tree"]][drawn].astype(np.int64)
    found = np.zeros((int(prompt.max()) + 1, len(agent.chances)))
    np.add.at(found, (prompt, enumerated.at[drawn]), (weight * scores.advantage * enumerated.log_gradient)[drawn])
    return found


def kept(agent: str, estimator: str, options: dict[str, Any], size: tuple[int, int, int]) -> list[Kept]:
    """At each level of noise."""
    enumerated, forests = grown(agent, size)
    columns = enumerated.forest.columns()
    chance = enumerated.chance[columns["root"]][np.searchsorted(columns["prompt"], np.unique(columns["prompt"]))]
    by_flips = [updates(AGENTS[agent], enumerated, forest, estimator, options) for forest in forests]
    num_leaves, rows = len(forests).bit_length() - 1, []
    for p in LEVELS:
        inner = square = 0.0
        mean = np.zeros(by_flips[0].shape[1])
        for flips, update in enumerate(by_flips):
            weight = chance * p ** flips.bit_count() * (1 - p) ** (num_leaves - flips.bit_count())
            inner += float(weight @ (update * by_flips[0]).sum(axis=1))
            square += float(weight @ (update**2).sum(axis=1))
            mean += weight @ update
        true_square = float(chance @ (by_flips[0] ** 2).sum(axis=1))
        rows.append(Kept(inner / np.sqrt(square * true_square), float(mean @ mean) / square))
    return rows


def cells() -> dict[str, list[Kept]]:
    """Means over the agents."""
    found = {row: np.array([kept(agent, *asked) for agent in AGENTS]).mean(axis=0) for row, asked in ROWS.items()}
    return {row: [Kept(*level) for level in levels.tolist()] for row, levels in found.items()}


def table() -> str:
    """Markdown."""

    def lines() -> Iterator[str]:
        yield "| estimator | " + " | ".join(f"p = {p:g}" for p in LEVELS) + " |"
        yield "|---" * (len(LEVELS) + 1) + "|"
        for row, levels in cells().items():
            yield f"| {row} | " + " | ".join(f"{cosine:.2f} · {share:.1%}" for cosine, share in levels) + " |"

    return "\n".join(lines()) + "\n"


BEGIN, END = "<!-- noise -->\n", "<!-- end of the noise -->\n"


def with_noise(page: str) -> str:
    """A page with its table of noise made anew."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail
