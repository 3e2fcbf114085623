"""A selection rule of your own: expand where outcomes disagree and few have been seen.

treegrpo rollout my.toml selection.rule=examples/own_selection.py:undecided selection.few=4 --output trees.jsonl
"""

import numpy as np


def undecided(columns, candidates, few=2.0):  # type: ignore[no-untyped-def]
    """Return a score for each candidate, a node id; `columns` are those that rollout/own_rule.py lists."""
    value, leaves = columns["value"][candidates], columns["num_leaves"][candidates]
    value = np.where(leaves > 0, value, 0.5)
    return value * (1 - value) / (leaves + few)
