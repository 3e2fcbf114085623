"""Trees, a forest or scores -> pyarrow.Table, pandas.DataFrame: a row a node, a leaf or a token.

- `nodes`: `prompt_id`, `tree_id`, `node_id`, `parent_id` (null on a root), `depth`, `status`; `reward`, `num_leaves`,
  `value`, `advantage` and its parts, null where there is none; `kept`, `policy_version`, `round`, `draw`, `entropy`,
  `confidence` where a node has them; `num_tokens`, `num_sampled`, and `logprob`, the sum over its sampled tokens, nats;
  of trees `text`, `observation`, and every other field that is text, numbers or flags throughout
- `leaves`: the same of nodes without children, and `path_tokens`, `path_sampled`: the tokens from the root to them
- `tokens`: `prompt_id`, `tree_id`, `node_id`, `depth`; `position` on the path; `token_id`, `sampled`, `tool_call`;
  `logprob` and `entropy`, nats; `advantage`: of a sampled token, what its node shows

Rows come in the order of trees and nodes. Ids of a forest are its own numbers, those of trees the file's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.trees.columns import Column, Columns, Names, Texts
from treegrpo_cli.trees.forest_tables import forest_columns, scores_columns
from treegrpo_cli.trees.record_tables import record_columns
from treegrpo_cli.trees.tree_record import AnyTree, as_records

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import pyarrow as pa  # type: ignore[import-untyped]

Rows: TypeAlias = Literal["nodes", "leaves", "tokens"]
Tabular: TypeAlias = Forest | Scores | AnyTree | Iterable[AnyTree]


def to_arrow(shown: Tabular, rows: Rows = "nodes") -> pa.Table:
    """Return a table with a row a node, a leaf or a token; a forest's own columns are not copied.

    Raises UserError for `rows` that are none of these, and without pyarrow.
    """
    pa = _installed("pyarrow", "to_arrow", "pyarrow")
    columns = _columns(shown, rows)
    arrays = {name: _array(pa, column, keep=rows == "tokens") for name, column in columns.items()}
    fields = [pa.field(name, array.type, _may_lack(columns[name])) for name, array in arrays.items()]
    return pa.table(list(arrays.values()), schema=pa.schema(fields))


def to_pandas(shown: Tabular, rows: Rows = "nodes") -> pd.DataFrame:
    """Return the same as a frame: counts and flags that may lack are nullable, `prompt_id` of tokens is a category.

    Raises UserError as `to_arrow` does, and without pandas.
    """
    pd, _ = (_installed(name, "to_pandas", "pandas and pyarrow") for name in ("pandas", "pyarrow"))
    table = to_arrow(shown, rows)
    nullable = _nullable_types(pd)
    series = {
        field.name: table.column(field.name).to_pandas(types_mapper=nullable if field.nullable else None)
        for field in table.schema
    }
    return pd.DataFrame(series)


def _columns(shown: Tabular, rows: str) -> Columns:
    if rows not in (known := get_args(Rows)):
        raise UserError(f"rows are {rows!r}; {nearest(str(rows), known)}")
    if isinstance(shown, Forest):
        return forest_columns(shown, rows)
    if isinstance(shown, Scores):
        return scores_columns(shown, rows)
    return record_columns(as_records(shown), rows)


def _installed(module: str, asked: str, needed: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"{asked} needs {needed}: pip install 'treegrpo[frames]'") from None


def _may_lack(column: Column) -> bool:
    return isinstance(column, Texts) or (not isinstance(column, Names) and column.missing is not None)


def _array(pa: Any, column: Column, *, keep: bool) -> Any:
    """An array of Arrow's; names stay a dictionary where `keep` says so."""
    if isinstance(column, Texts):
        return pa.array(_encodable(column.values), pa.large_string())
    if isinstance(column, Names):
        names = pa.array(_encodable(column.names), pa.string())  # Parquet knows no long names of categories
        coded = pa.DictionaryArray.from_arrays(pa.array(column.codes), names)
        return coded if keep else coded.dictionary_decode()
    return pa.array(column.values, mask=column.missing)


def _encodable(texts: Iterable[str | None]) -> list[str | None]:
    """Text without halves of surrogate pairs, which have no place in UTF-8."""
    whole = list(texts)
    try:
        "".join(filter(None, whole)).encode()
    except UnicodeEncodeError:
        return [text and text.encode(errors="replace").decode() for text in whole]
    return whole


def _nullable_types(pd: Any) -> Callable[[Any], Any]:
    """Pandas' own types of counts and flags, for columns that may lack some: NumPy's would become floats or objects."""
    import pyarrow as pa

    known: Mapping[Any, Any] = {
        pa.bool_(): pd.BooleanDtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint32(): pd.UInt32Dtype(),
    }
    return known.get
