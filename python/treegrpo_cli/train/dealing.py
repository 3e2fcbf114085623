"""A layout, a number of ranks -> which micro-batches each rank computes, by their estimated work.

On most paths ranks keep step: each forward of a layer waits for all of them, so that a round, a micro-batch of each
rank, takes as long as its largest. Sorted by work and dealt in that order, R at a time, the rounds take least in sum.

    work 9 8 5 4 1, two ranks:   9 8 | 5 4 | 1 -   take 9 + 5 + 1

A path that holds all weights on every rank lets each go its own way: longest first, to whoever has least so far, which
takes at most 4/3 of the least possible (Graham 1969, "Bounds on multiprocessing timing anomalies").

Where a layout has fewer micro-batches than ranks, or they are of unequal work, it is cut into smaller ones, if the
estimate is that they take less: trees are cut at a branch only where whole ones leave ranks without work for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from treegrpo_cli._core import NO_PARENT, Forest, Layout, MicroBatch
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.types import TrainBatch

Hand = list[int | None]
"""What a rank computes: numbers of micro-batches, None where it only keeps step."""

Cut = Callable[[Layout, int], list[MicroBatch]]
"""A layout and a number of tokens -> micro-batches of at most that many, where paths allow it."""


def deal_rounds(work: Sequence[float], num_ranks: int) -> list[Hand]:
    """Deal to ranks that keep step: as many to each, the sum over rounds of the largest as small as possible.

    Within a round the largest goes to the rank with least so far. Each rank gets one thing at least.
    """
    order = _longest_first(work)
    hands: list[Hand] = [[] for _ in range(num_ranks)]
    load = [0.0] * num_ranks
    for start in range(0, max(1, len(order)), num_ranks):
        dealt = order[start : start + num_ranks]
        waiting = sorted(range(num_ranks), key=lambda rank: (load[rank], rank))
        for place, rank in enumerate(waiting):
            number = dealt[place] if place < len(dealt) else None
            hands[rank].append(number)
            load[rank] += 0.0 if number is None else work[number]
    return hands


def deal_loads(work: Sequence[float], num_ranks: int) -> list[Hand]:
    """Deal to ranks that do not wait for each other: the greatest load as small as longest first makes it."""
    hands: list[Hand] = [[] for _ in range(num_ranks)]
    load = [0.0] * num_ranks
    for number in _longest_first(work):
        rank = load.index(min(load))
        hands[rank].append(number)
        load[rank] += work[number]
    return hands


def time_of_rounds(work: Sequence[float], hands: Sequence[Hand], round_work: float = 0.0) -> float:
    """Return the work that all wait for, with what each round costs beside."""
    rounds = zip(*hands, strict=True)
    return sum(round_work + max(0.0 if number is None else work[number] for number in one) for one in rounds)


def time_of_loads(work: Sequence[float], hands: Sequence[Hand]) -> float:
    """Return the work of the rank that has most."""
    return max(sum(work[number] for number in hand if number is not None) for hand in hands)


def best_hands(
    layout: Layout,
    cut: Cut,
    max_tokens: int,
    num_ranks: int,
    work_of: Callable[[MicroBatch], float],
    round_work: float | None,
) -> list[list[MicroBatch | None]]:
    """Return the micro-batches of each rank, in the order in which it computes them: all that have targets.

    `round_work` is what a round costs beside its micro-batches, None where ranks do not wait for each other. Of several
    cuts that take the same time the coarsest is taken.
    """
    found, least = None, float("inf")
    for budget in budgets(layout, max_tokens, num_ranks):
        micros = [micro for micro in cut(layout, budget) if len(micro.target_ids)]
        work = [work_of(micro) for micro in micros]
        if round_work is None:
            hands = deal_loads(work, num_ranks)
            time = time_of_loads(work, hands)
        else:
            hands = deal_rounds(work, num_ranks)
            time = time_of_rounds(work, hands, round_work)
        if found is None or time < least:
            found, least = (micros, hands), time
    assert found is not None
    micros, hands = found
    return [[None if number is None else micros[number] for number in hand] for hand in hands]


def budgets(layout: Layout, max_tokens: int, num_ranks: int) -> list[int]:
    """Return the sizes of micro-batches that are tried, in tokens: as given, whole trees, a share, half a share."""
    starts = np.flatnonzero(layout.parent_token == NO_PARENT)
    largest = int(np.diff(starts, append=len(layout.token_ids)).max(initial=1))
    share = max(1, -(-len(layout.token_ids) // num_ranks))
    wanted = [max_tokens, max(largest, share), share, max(1, share // 2)]
    return sorted({min(tokens, max_tokens) for tokens in wanted}, reverse=True)


def _longest_first(work: Sequence[float]) -> list[int]:
    return sorted(range(len(work)), key=lambda number: (-work[number], number))


@lru_cache(maxsize=2)
def idle_batch(device: torch.device) -> TrainBatch:
    """Return what a rank forwards that has nothing to compute: a token, and one that is read from it."""
    forest, _ = Forest.from_chains(
        row_start=np.array([0, 2], dtype=np.uint64),
        token_ids=np.zeros(2, dtype=np.uint32),
        sampled=np.array([False, True]),
        prompt=np.zeros(1, dtype=np.uint32),
        reward=np.zeros(1),
    )
    scores = forest.given_scores(np.ones(forest.num_nodes), leaf_level=True)
    [micro] = forest.pack(scores).micro_batches(2)
    return to_batch(micro, device)
