"""What a table of nodes, leaves or tokens is made of: columns, each of one type, in the order in which they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray


class Numbers(NamedTuple):
    """Numbers or flags, [R]; `missing` says where there is none, None = there is one in every row."""

    values: NDArray[Any]
    missing: NDArray[np.bool_] | None = None

    def take(self, rows: NDArray[np.intp]) -> Numbers:
        """The values of these rows."""
        return Numbers(self.values[rows], None if self.missing is None else self.missing[rows])


class Texts(NamedTuple):
    """Text, [R]; None where there is none."""

    values: Sequence[str | None]

    def take(self, rows: NDArray[np.intp]) -> Texts:
        """The values of these rows."""
        return Texts([self.values[row] for row in rows.tolist()])


class Names(NamedTuple):
    """One of a few names, `names[codes[r]]`, [R]."""

    codes: NDArray[np.int32]
    names: Sequence[str]

    def take(self, rows: NDArray[np.intp]) -> Names:
        """The values of these rows."""
        return Names(self.codes[rows], self.names)


Column: TypeAlias = Numbers | Texts | Names
Columns: TypeAlias = dict[str, Column]


def or_missing(values: NDArray[np.floating[Any]]) -> Numbers:
    """Numbers where NaN stands for none."""
    return Numbers(values, np.isnan(values))


def taken(columns: Mapping[str, Column], rows: NDArray[np.intp]) -> Columns:
    """Some rows of all columns."""
    return {name: column.take(rows) for name, column in columns.items()}
