"""A directory -> arms that each change one thing about adaptive trees, for `treegrpo compare --probe`.

    python examples/comparison/ideas.py runs/ideas
    treegrpo compare runs/ideas/*.toml --common examples/comparison/long.toml --probe

`two-trees` is what the others change: two chains a prompt, then two waves of two expansions a prompt on average, dealt
and drawn where outcomes disagree (`contrast`), credited by `state-loo`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import tomli_w

Settings = dict[str, dict[str, Any]]

ALIVE = {"rule": f"{Path(__file__).with_name('alive.py')}:alive", "temperature": 1.0, "replacement": True}
CONTRAST = {"rule": "contrast"}


def shape(num_trees: int, num_expansions: int, num_rounds: int, **more: Any) -> dict[str, Any]:
    """The table `[rollout]` of trees of this shape."""
    return {"num_trees": num_trees, "num_expansions": num_expansions, "num_rounds": num_rounds} | more


TWO_TREES: Settings = {
    "rollout": shape(2, 1, 2, allocation="uncertain"),
    "advantage": {"estimator": "state-loo"},
    "selection": CONTRAST,
}

OTHERS: dict[str, Settings] = {
    "chains-6": {"rollout": shape(6, 1, 0), "advantage": {"estimator": "grpo"}},
    "chains-12": {"rollout": shape(12, 1, 0), "advantage": {"estimator": "grpo"}},
    "adaptive-chains": {
        "rollout": shape(2, 1, 2, allocation="uncertain", candidates="root"),
        "advantage": {"estimator": "grpo"},
    },
    "uniform-trees": {"rollout": shape(2, 2, 1), "advantage": {"estimator": "tree-grpo"}},
    "two-trees": TWO_TREES,
}

CHANGES: dict[str, Settings] = {
    "one-tree": {"rollout": {"num_trees": 1, "num_rounds": 5}},
    "three-trees": {"rollout": {"num_trees": 3, "num_rounds": 1}},
    "even": {"rollout": {"allocation": "even"}},
    "uniform-nodes": {"selection": {"rule": "uniform"}},
    "blind": {"rollout": {"allocation": "even"}, "selection": {"rule": "uniform"}},
    "contrast-kappa-3": {"selection": CONTRAST | {"kappa": 3.0}},
    "state-loo-kappa-1": {"advantage": {"kappa": 1.0}},
    "state-loo-kappa-10": {"advantage": {"kappa": 10.0}},
    "no-scale": {"advantage": {"scale": "none"}},
    "at-most-8-leaves": {"budget": {"prompt_leaves": 8}},
    "distinct-05": {"rollout": {"distinct_siblings": True}, "advantage": {"siblings": "distinct"}},
    "distinct-20": {
        "rollout": {"distinct_siblings": True, "min_undrawn": 0.2},
        "advantage": {"siblings": "distinct"},
    },
    "rescue": {"rollout": {"rescue": "failed", "max_rescues": 4}},
    "alive": {"rollout": {"allocation": "even"}, "selection": ALIVE},
    "causal": {"advantage": {"estimator": "causal"}},
}
"""What each idea sets otherwise than `two-trees`; a rule that is named stands alone."""


def ideas() -> dict[str, Settings]:
    """All arms by name, those to compare with first."""
    arms = deepcopy(OTHERS)
    for name, changes in CHANGES.items():
        arms[name] = deepcopy(TWO_TREES)
        for table, values in changes.items():
            arms[name][table] = values if table == "selection" else arms[name].get(table, {}) | values
    return arms


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a file an arm; returns the exit code."""
    (directory,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    directory.mkdir(parents=True, exist_ok=True)
    for number, (name, settings) in enumerate(ideas().items()):
        (directory / f"{number:02}-{name}.toml").write_text(tomli_w.dumps({"name": name} | settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
