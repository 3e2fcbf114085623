//! Tables and drawings of forests and scores: Python makes them, of their columns.

use pyo3::prelude::*;

type Any<'py> = Bound<'py, PyAny>;

/// A `pandas.DataFrame` with a row a node, a leaf or a token.
pub fn to_pandas<'py>(shown: &Any<'py>, rows: &str) -> PyResult<Any<'py>> {
    shown.py().import("treegrpo_cli.trees.frames")?.call_method1("to_pandas", (shown, rows))
}

/// The same as a `pyarrow.Table`.
pub fn to_arrow<'py>(shown: &Any<'py>, rows: &str) -> PyResult<Any<'py>> {
    shown.py().import("treegrpo_cli.trees.frames")?.call_method1("to_arrow", (shown, rows))
}

/// What a notebook shows.
pub fn html<'py>(shown: &Any<'py>) -> PyResult<Any<'py>> {
    shown.py().import("treegrpo_cli.trees.notebook")?.call_method1("html_of", (shown,))
}

/// A count with its noun.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
