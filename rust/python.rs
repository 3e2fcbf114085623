//! The only room that names PyO3: short methods, interpreter released, one error conversion.

mod convert;
mod forest;
mod frames;
mod layout;
mod rules;
mod scores;

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use self::convert::{Array, CoreError, Key, Whole, described_dict, given_options, options_dict};
use crate::estimators::{ESTIMATORS, Estimator};
use crate::forest::NO_PARENT;
use crate::select;

#[pyfunction]
fn estimators() -> Vec<&'static str> {
    ESTIMATORS.iter().map(|estimator| estimator.name).collect()
}

#[pyfunction]
fn describe_estimators(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let described = |estimator: &&Estimator| {
        let dict = PyDict::new(py);
        dict.set_item("name", estimator.name)?;
        dict.set_item("level", estimator.level())?;
        dict.set_item("summary", estimator.summary)?;
        dict.set_item("formula", estimator.formula)?;
        dict.set_item("weighs", estimator.weighs)?;
        dict.set_item("reads_tokens", estimator.reads_tokens)?;
        dict.set_item("options", described_dict(py, &estimator.options()?)?)?;
        Ok(dict)
    };
    ESTIMATORS.iter().map(described).collect()
}

#[pyfunction]
fn estimator_options<'py>(py: Python<'py>, estimator: &str) -> PyResult<Bound<'py, PyDict>> {
    options_dict(py, &Estimator::named(estimator)?.resolve(&[])?)
}

#[pyfunction]
fn resolve_options<'py>(
    py: Python<'py>,
    estimator: &str,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    options_dict(py, &Estimator::named(estimator)?.resolve(&given_options(options)?)?)
}

#[pyfunction]
fn select_uniform(
    py: Python<'_>,
    num_candidates: Whole<u32>,
    n: Whole<u32>,
    replacement: bool,
    key: Key,
) -> PyResult<Array<'_, u32>> {
    Ok(select::select_uniform(num_candidates.0, n.0, replacement, &key.0)?.into_pyarray(py))
}

#[pyfunction]
fn keep_leaves(py: Python<'_>, num_leaves: Whole<u32>, k: Whole<u32>, key: Key) -> PyResult<Array<'_, u32>> {
    Ok(select::keep_leaves(num_leaves.0, k.0, &key.0)?.into_pyarray(py))
}

#[pyfunction]
fn derive_seed(key: Key) -> u64 {
    select::derive_seed(&key.0)
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let error = module.py().get_type::<CoreError>();
    error.setattr("tree", module.py().None())?;
    error.setattr("node", module.py().None())?;
    error.setattr("reason", "")?;
    module.add("CoreError", error)?;
    module.add("NO_PARENT", NO_PARENT)?;
    module.add_class::<forest::PyForest>()?;
    module.add_class::<scores::PyScores>()?;
    module.add_class::<layout::PyChainRows>()?;
    module.add_class::<layout::PyLayout>()?;
    module.add_class::<layout::PyMicroBatch>()?;
    module.add_function(wrap_pyfunction!(estimators, module)?)?;
    module.add_function(wrap_pyfunction!(describe_estimators, module)?)?;
    module.add_function(wrap_pyfunction!(estimator_options, module)?)?;
    module.add_function(wrap_pyfunction!(resolve_options, module)?)?;
    module.add_function(wrap_pyfunction!(rules::describe_selection_rules, module)?)?;
    module.add_function(wrap_pyfunction!(rules::resolve_selection_options, module)?)?;
    module.add_function(wrap_pyfunction!(rules::draw_by_scores, module)?)?;
    module.add_function(wrap_pyfunction!(select_uniform, module)?)?;
    module.add_function(wrap_pyfunction!(keep_leaves, module)?)?;
    module.add_function(wrap_pyfunction!(derive_seed, module)?)
}
