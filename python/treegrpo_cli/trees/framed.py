"""Trees as people look at them from Python: the methods that one tree and many have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import pyarrow as pa  # type: ignore[import-untyped]

    from treegrpo_cli.trees.frames import Rows


class Framed:
    """`to_pandas`, `to_arrow`, and what a notebook shows."""

    __slots__ = ()

    def to_pandas(self, rows: Rows = "nodes") -> pd.DataFrame:
        """Return a frame with a row a node, a leaf or a token (`rows="leaves"`, `"tokens"`); see `frames`."""
        from treegrpo_cli.trees.frames import to_pandas

        return to_pandas(self, rows)  # type: ignore[arg-type]

    def to_arrow(self, rows: Rows = "nodes") -> pa.Table:
        """Return the same as a table of pyarrow's."""
        from treegrpo_cli.trees.frames import to_arrow

        return to_arrow(self, rows)  # type: ignore[arg-type]

    def _repr_html_(self) -> str:
        from treegrpo_cli.trees.notebook import html_of

        return html_of(self)  # type: ignore[arg-type]
