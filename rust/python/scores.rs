//! `Scores` as Python sees them.

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert::{Array, Whole, options_dict, term_dict, view};
use super::forest::PyForest;
use super::frames::{self, count};
use crate::advantage::Scores;
use crate::explain::{Explanation, Part, explain};
use crate::terms::Mask;

#[pyclass(name = "Scores", module = "treegrpo_cli._core", frozen)]
pub struct PyScores {
    pub forest: Py<PyForest>,
    pub scores: Scores,
}

#[pymethods]
impl PyScores {
    /// The forest that they are of, as it was scored. Refuses one that has changed since.
    #[getter]
    fn forest(&self) -> PyResult<PyForest> {
        let forest = self.forest.get().now();
        self.scores.check_of(&forest)?;
        Ok(PyForest::sharing(forest))
    }

    #[pyo3(signature = (rows="nodes"))]
    fn to_pandas<'py>(slf: &Bound<'py, Self>, rows: &str) -> PyResult<Bound<'py, PyAny>> {
        frames::to_pandas(slf.as_any(), rows)
    }

    #[pyo3(signature = (rows="nodes"))]
    fn to_arrow<'py>(slf: &Bound<'py, Self>, rows: &str) -> PyResult<Bound<'py, PyAny>> {
        frames::to_arrow(slf.as_any(), rows)
    }

    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        frames::html(slf.as_any())
    }

    fn __repr__(&self) -> String {
        format!("Scores({}, {})", self.scores.label, count(self.scores.num_leaves.len(), "node"))
    }

    #[getter]
    fn estimator(&self) -> &str {
        &self.scores.label
    }

    #[getter]
    fn options<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        match &self.scores.terms[..] {
            [term] => options_dict(py, &term.options),
            _ => Ok(PyDict::new(py)),
        }
    }

    #[getter]
    fn terms<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.scores.terms.iter().map(|term| term_dict(py, term)).collect()
    }

    #[getter]
    fn leaf_level(&self) -> bool {
        self.scores.leaf_advantage.is_some()
    }

    #[getter]
    fn depth<'py>(&self, py: Python<'py>) -> Array<'py, u32> {
        // copied when asked for: the forest may have grown since, and most callers of `score` never look
        self.forest.get().now().depth[..self.scores.num_leaves.len()].to_vec().into_pyarray(py)
    }

    #[getter]
    fn num_leaves<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, u32>> {
        view(slf.as_any(), &slf.get().scores.num_leaves)
    }

    #[getter]
    fn value<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, f64>> {
        view(slf.as_any(), &slf.get().scores.value)
    }

    #[getter]
    fn advantage<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, f64>> {
        view(slf.as_any(), &slf.get().scores.advantage)
    }

    #[getter]
    fn leaf_advantage<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Array<'py, f64>>> {
        slf.get().scores.leaf_advantage.as_ref().map(|column| view(slf.as_any(), column)).transpose()
    }

    #[getter]
    fn node_advantage<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Array<'py, f64>>> {
        slf.get().scores.node_advantage.as_ref().map(|column| view(slf.as_any(), column)).transpose()
    }

    #[getter]
    fn weight<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Array<'py, f64>>> {
        slf.get().scores.weight.as_ref().map(|column| view(slf.as_any(), column)).transpose()
    }

    #[getter]
    fn unmasked_advantage<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Array<'py, f64>>> {
        slf.get().scores.unmasked.as_ref().map(|some| view(slf.as_any(), &some.shown)).transpose()
    }

    #[getter]
    fn unmasked_leaf_advantage<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Array<'py, f64>>> {
        let column = slf.get().scores.unmasked.as_ref().and_then(|some| some.leaf.as_ref());
        column.map(|column| view(slf.as_any(), column)).transpose()
    }

    #[getter]
    fn unmasked_node_advantage<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Array<'py, f64>>> {
        let column = slf.get().scores.unmasked.as_ref().and_then(|some| some.node.as_ref());
        column.map(|column| view(slf.as_any(), column)).transpose()
    }

    fn explain<'py>(&self, py: Python<'py>, node: Whole<u32>) -> PyResult<Bound<'py, PyDict>> {
        let forest = self.forest.get().now();
        let told = py.detach(|| explain(&forest, &self.scores, node.0))?;
        explanation_dict(py, node.0, &told, &self.scores)
    }
}

fn explanation_dict<'py>(
    py: Python<'py>,
    node: u32,
    told: &Explanation,
    scores: &Scores,
) -> PyResult<Bound<'py, PyDict>> {
    fn column<T>(told: &Explanation, of: impl Fn(&Part) -> T) -> Vec<T> {
        told.parts.iter().map(of).collect()
    }
    let or_none = |number: f64| (!number.is_nan()).then_some(number);
    let dict = PyDict::new(py);
    dict.set_item("node", node)?;
    dict.set_item("value", or_none(told.value))?;
    dict.set_item("advantage", or_none(told.advantage))?;
    dict.set_item("leaf_level", told.leaf_level)?;
    dict.set_item("nodes", column(told, |part| part.node))?;
    dict.set_item("of_leaf", column(told, |part| part.of_leaf))?;
    dict.set_item("estimator", column(told, |part| scores.terms[part.term as usize].estimator.name))?;
    dict.set_item("mask", column(told, |part| scores.terms[part.term as usize].mask.map(Mask::name)))?;
    dict.set_item("term", column(told, |part| part.comparison.name))?;
    dict.set_item("group", column(told, |part| part.comparison.group))?;
    dict.set_item("group_size", column(told, |part| part.group.size))?;
    dict.set_item("group_mean", column(told, |part| part.group.mean))?;
    dict.set_item("group_std", column(told, |part| or_none(part.group.std)))?;
    dict.set_item("case", column(told, |part| part.measure.case.name()))?;
    dict.set_item("raw", column(told, |part| part.raw))?;
    dict.set_item("baseline", column(told, |part| part.measure.baseline))?;
    dict.set_item("factor", column(told, |part| part.measure.factor))?;
    dict.set_item("scale", column(told, |part| part.measure.scale))?;
    dict.set_item("measured", column(told, |part| part.measured))?;
    dict.set_item("weight", column(told, |part| part.comparison.weight))?;
    dict.set_item("contribution", column(told, Part::contribution))?;
    Ok(dict)
}
