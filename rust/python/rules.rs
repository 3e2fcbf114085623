//! Selection rules and draws as Python calls them.

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert::{Array, Input, Key, Whole, described_dict, given_options, options_dict};
use crate::draws;
use crate::rules::{RULES, Rule};

#[pyfunction]
pub fn describe_selection_rules(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let described = |rule: &&Rule| {
        let dict = PyDict::new(py);
        dict.set_item("name", rule.name)?;
        dict.set_item("summary", rule.summary)?;
        dict.set_item("formula", rule.formula)?;
        dict.set_item("needs", rule.needs)?;
        dict.set_item("reads_prompt", rule.reads_prompt)?;
        dict.set_item("options", described_dict(py, &rule.options()?)?)?;
        Ok(dict)
    };
    RULES.iter().map(described).collect()
}

#[pyfunction]
pub fn resolve_selection_options<'py>(
    py: Python<'py>,
    rule: &str,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    options_dict(py, &Rule::named(rule)?.resolve(&given_options(options)?)?)
}

#[pyfunction]
#[pyo3(signature = (scores, n, key, temperature=0.0, replacement=false))]
pub fn draw_by_scores<'py>(
    py: Python<'py>,
    scores: Input<'_, f64>,
    n: Whole<u32>,
    key: Key,
    temperature: f64,
    replacement: bool,
) -> PyResult<Array<'py, u32>> {
    Ok(draws::draw_by_scores(scores.as_slice()?, n.0, &key.0, temperature, replacement)?.into_pyarray(py))
}
