"""An estimator of your own: how much better a turn is than what it was chosen from; later turns count less.

treegrpo inspect-tree examples/trees.jsonl --estimator examples/own_estimator.py:steps --option discount=0.5
"""

import numpy as np


def steps(columns, discount=0.9):  # type: ignore[no-untyped-def]
    """Return an advantage for each node; `columns` are those that trees/own_estimator.py lists."""
    depth, value = columns["depth"], columns["value"]
    prompt = np.nanmean(columns["reward"])  # the roots of a prompt's trees are one state
    above = np.where(depth > 1, value[np.where(depth > 1, columns["parent"], 0)], prompt)
    return discount ** (depth - 1.0) * (value - above)
