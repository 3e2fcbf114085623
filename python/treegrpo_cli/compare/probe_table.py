"""Repeats on disk -> columns over the same prompts in every arm, what the statistics are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from treegrpo_cli.compare.probe_statistics import Numbers, Rolled, products

if TYPE_CHECKING:
    from treegrpo_cli.compare.probe_bench import RepeatResult
    from treegrpo_cli.compare.probe_store import ProbeStore


class ProbeTable:
    """R repeats of every arm; `numbers` [P] are the prompts that any of them met, refills too.

    A prompt that an arm did not meet in a repeat took nothing there and adds nothing.
    """

    def __init__(self, store: ProbeStore, arms: Sequence[str], num_repeats: int) -> None:
        self._store, self._num_repeats = store, num_repeats
        results = {(arm, repeat): store.load(arm, repeat) for arm in arms for repeat in range(num_repeats)}
        met = {row.number for result in results.values() for row in result.rows}
        self.numbers = np.array(sorted(met), dtype=np.int64)
        self._place = {number: place for place, number in enumerate(sorted(met))}
        self._length = max(result.vectors.shape[1] for result in results.values())
        self._columns = {arm: self._columns_of([results[arm, i] for i in range(num_repeats)]) for arm in arms}
        self._seconds = {
            arm: np.array([results[arm, i].rollout_s + results[arm, i].update_s for i in range(num_repeats)])
            for arm in arms
        }

    def rolled(self, arm: str, against: str, num_prompts: int) -> Rolled:
        """What the repeats of an arm came to, beside those of the arm that cosines are with."""
        return Rolled(
            own=products(self._vectors(arm), self._vectors(arm)),
            cross=products(self._vectors(arm), self._vectors(against)),
            own_reference=products(self._vectors(against), self._vectors(against)),
            common=self.numbers < num_prompts,
            seconds=self._seconds[arm],
            **self._columns[arm],
        )

    def _columns_of(self, results: Sequence[RepeatResult]) -> Mapping[str, Numbers]:
        names = ("tokens", "tool_calls", "nodes", "live_nodes", "alive", "grown")
        columns = {name: np.zeros((len(results), len(self.numbers))) for name in names}
        for repeat, result in enumerate(results):
            for row in result.rows:
                place = self._place[row.number]
                columns["grown"][repeat, place] = 1.0
                for name in names[:-1]:
                    columns[name][repeat, place] = float(getattr(row, name))
        return columns

    def _vectors(self, arm: str) -> Iterator[NDArray[np.float32]]:
        """The gradients of each repeat, [P, D], one table after another."""
        for repeat in range(self._num_repeats):
            result = self._store.load(arm, repeat)
            table = np.zeros((len(self.numbers), self._length), dtype=np.float32)
            learned = [self._place[row.number] for row in result.rows if row.learned]
            if learned:
                table[learned] = result.vectors
            yield table
