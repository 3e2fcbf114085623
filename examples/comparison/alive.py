"""A selection rule: expand only where success was seen to be possible.

On a long way to an answer, one early mistake that cannot be mended wastes all that is expanded below it. A node below
which some leaf was rewarded is known to be alive; the root always may be.
"""

import numpy as np


def alive(columns, candidates, few=1.0):  # type: ignore[no-untyped-def]
    """Return log q (1 - q) of each candidate, -inf where nothing below it succeeded.

    q is the share of rewarded leaves below, and `few` leaves' worth of one half. Drawn at temperature 1, with
    replacement, nodes are chosen in proportion to q (1 - q).
    """
    value, leaves = columns["value"][candidates], columns["num_leaves"][candidates]
    value = np.where(leaves > 0, value, 0.0)
    q = (value * leaves + few / 2) / (leaves + few)
    is_alive = (value > 0) | (columns["depth"][candidates] == 0)
    return np.where(is_alive, np.log(q * (1 - q)), -np.inf)


alive.reads_prompt = True  # type: ignore[attr-defined]
