//! Rows, layouts and micro-batches as Python sees them.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use super::convert::{Array, Whole, view};
use crate::micro_batch::MicroBatch;
use crate::pack::Layout;
use crate::rows::ChainRows;

#[pyclass(name = "ChainRows", module = "treegrpo_cli._core", frozen, get_all)]
pub struct PyChainRows {
    row_start: Py<PyArray1<u64>>,
    input_ids: Py<PyArray1<u32>>,
    loss_mask: Py<PyArray1<bool>>,
    logprobs: Py<PyArray1<f32>>,
    advantages: Py<PyArray1<f32>>,
    weights: Py<PyArray1<f32>>,
    policy_version: Py<PyArray1<u32>>,
    node_ids: Py<PyArray1<u32>>,
    group: Py<PyArray1<u32>>,
    tree: Py<PyArray1<u32>>,
    leaf: Py<PyArray1<u32>>,
    reward: Py<PyArray1<f64>>,
}

impl PyChainRows {
    pub fn new(py: Python<'_>, rows: ChainRows) -> Self {
        Self {
            row_start: rows.row_start.into_pyarray(py).unbind(),
            input_ids: rows.input_ids.into_pyarray(py).unbind(),
            loss_mask: rows.loss_mask.into_pyarray(py).unbind(),
            logprobs: rows.logprobs.into_pyarray(py).unbind(),
            advantages: rows.advantages.into_pyarray(py).unbind(),
            weights: rows.weights.into_pyarray(py).unbind(),
            policy_version: rows.policy_version.into_pyarray(py).unbind(),
            node_ids: rows.node_ids.into_pyarray(py).unbind(),
            group: rows.group.into_pyarray(py).unbind(),
            tree: rows.tree.into_pyarray(py).unbind(),
            leaf: rows.leaf.into_pyarray(py).unbind(),
            reward: rows.reward.into_pyarray(py).unbind(),
        }
    }
}

#[pyclass(name = "Layout", module = "treegrpo_cli._core", frozen)]
pub struct PyLayout {
    pub layout: Layout,
}

#[pymethods]
impl PyLayout {
    #[getter]
    fn token_ids<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, u32>> {
        view(slf.as_any(), &slf.get().layout.tree.token_ids)
    }

    #[getter]
    fn positions<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, u32>> {
        view(slf.as_any(), &slf.get().layout.tree.positions)
    }

    #[getter]
    fn parent_token<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, u32>> {
        view(slf.as_any(), &slf.get().layout.tree.parent_token)
    }

    #[getter]
    fn subtree_end<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, u32>> {
        view(slf.as_any(), &slf.get().layout.tree.subtree_end)
    }

    #[getter]
    fn run_start<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, u32>> {
        view(slf.as_any(), &slf.get().layout.tree.run_start)
    }

    #[getter]
    fn path_tokens<'py>(slf: &Bound<'py, Self>) -> PyResult<Array<'py, u32>> {
        view(slf.as_any(), &slf.get().layout.path_tokens)
    }

    #[getter]
    fn num_targets(&self) -> usize {
        self.layout.num_targets()
    }

    #[getter]
    fn weighted_tokens(&self) -> f64 {
        self.layout.weighted_tokens
    }

    fn micro_batches(&self, py: Python<'_>, max_tokens: Whole<usize>) -> PyResult<Vec<PyMicroBatch>> {
        let batches = py.detach(|| self.layout.micro_batches(max_tokens.0))?;
        Ok(batches.into_iter().map(|batch| PyMicroBatch::new(py, batch)).collect())
    }
}

#[pyclass(name = "MicroBatch", module = "treegrpo_cli._core", frozen, get_all)]
pub struct PyMicroBatch {
    num_context: u32,
    token_ids: Py<PyArray1<u32>>,
    positions: Py<PyArray1<u32>>,
    parent_token: Py<PyArray1<u32>>,
    subtree_end: Py<PyArray1<u32>>,
    run_start: Py<PyArray1<u32>>,
    key_start: Py<PyArray1<u32>>,
    key_end: Py<PyArray1<u32>>,
    query_start: Py<PyArray1<u32>>,
    query_end: Py<PyArray1<u32>>,
    edge_start: Py<PyArray1<u32>>,
    edge_parent: Py<PyArray1<u32>>,
    predictors: Py<PyArray1<u32>>,
    target_row: Py<PyArray1<u32>>,
    target_ids: Py<PyArray1<u32>>,
    logprobs: Py<PyArray1<f32>>,
    gain: Py<PyArray1<f64>>,
    penalty: Py<PyArray1<f64>>,
    weights: Py<PyArray1<f64>>,
    gain_weights: Py<PyArray1<f64>>,
    penalty_weights: Py<PyArray1<f64>>,
    turn: Py<PyArray1<u32>>,
    row: Option<Py<PyArray1<u32>>>,
}

impl PyMicroBatch {
    fn new(py: Python<'_>, batch: MicroBatch) -> Self {
        let MicroBatch { num_context, tree, segments, .. } = batch;
        Self {
            num_context,
            token_ids: tree.token_ids.into_pyarray(py).unbind(),
            positions: tree.positions.into_pyarray(py).unbind(),
            parent_token: tree.parent_token.into_pyarray(py).unbind(),
            subtree_end: tree.subtree_end.into_pyarray(py).unbind(),
            run_start: tree.run_start.into_pyarray(py).unbind(),
            key_start: segments.key_start.into_pyarray(py).unbind(),
            key_end: segments.key_end.into_pyarray(py).unbind(),
            query_start: segments.query_start.into_pyarray(py).unbind(),
            query_end: segments.query_end.into_pyarray(py).unbind(),
            edge_start: tree.edge_start.into_pyarray(py).unbind(),
            edge_parent: tree.edge_parent.into_pyarray(py).unbind(),
            predictors: batch.predictors.into_pyarray(py).unbind(),
            target_row: batch.target_row.into_pyarray(py).unbind(),
            target_ids: batch.target_ids.into_pyarray(py).unbind(),
            logprobs: batch.logprobs.into_pyarray(py).unbind(),
            gain: batch.gain.into_pyarray(py).unbind(),
            penalty: batch.penalty.into_pyarray(py).unbind(),
            weights: batch.weights.into_pyarray(py).unbind(),
            gain_weights: batch.gain_weights.into_pyarray(py).unbind(),
            penalty_weights: batch.penalty_weights.into_pyarray(py).unbind(),
            turn: batch.turn.into_pyarray(py).unbind(),
            row: batch.row.map(|row| row.into_pyarray(py).unbind()),
        }
    }
}
