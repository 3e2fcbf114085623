//! The only file that names PyO3: short methods, interpreter released, one error conversion.

use numpy::ndarray::ArrayView1;
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::advantage::{Scores, score};
use crate::error::Error;
use crate::forest::{Columns, Forest, NO_PARENT, Tokens};
use crate::micro_batch::MicroBatch;
use crate::options::{ESTIMATORS, OptionValue, defaults, resolve};
use crate::pack::{Layout, pack};
use crate::rows::{ChainRows, chain_rows};
use crate::select;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

type Array<'py, T> = Bound<'py, PyArray1<T>>;
type Input<'py, T> = PyReadonlyArray1<'py, T>;

#[derive(FromPyObject)]
enum GivenValue {
    Flag(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl From<GivenValue> for OptionValue {
    fn from(given: GivenValue) -> Self {
        match given {
            GivenValue::Flag(flag) => Self::Flag(flag),
            GivenValue::Integer(integer) => Self::Integer(integer),
            GivenValue::Number(number) => Self::Number(number),
            GivenValue::Text(text) => Self::Text(text),
        }
    }
}

fn given_options(options: &Bound<'_, PyDict>) -> PyResult<Vec<(String, OptionValue)>> {
    let pair = |(name, value): (Bound<PyAny>, Bound<PyAny>)| {
        let name: String = name.extract()?;
        let value: GivenValue = value
            .extract()
            .map_err(|_| PyValueError::new_err(format!("option {name}: expected a number, a name or a flag")))?;
        Ok((name, value.into()))
    };
    options.iter().map(pair).collect()
}

fn options_dict<'py>(py: Python<'py>, options: &[(String, OptionValue)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in options {
        match value {
            OptionValue::Text(text) => dict.set_item(name, text)?,
            OptionValue::Number(number) => dict.set_item(name, number)?,
            OptionValue::Integer(integer) => dict.set_item(name, integer)?,
            OptionValue::Flag(flag) => dict.set_item(name, flag)?,
        }
    }
    Ok(dict)
}

#[pyclass(name = "Forest", module = "treegrpo_cli._core")]
struct PyForest {
    forest: Forest,
    lent: bool,
}

impl PyForest {
    fn growing(&mut self) -> PyResult<&mut Forest> {
        if self.lent { Err(Error::Frozen.into()) } else { Ok(&mut self.forest) }
    }
}

#[pymethods]
impl PyForest {
    #[new]
    fn new() -> Self {
        Self { forest: Forest::new(), lent: false }
    }

    #[staticmethod]
    #[pyo3(signature = (*, prompt, parent, tree, status, reward, policy_version=None, token_start=None, token_ids=None,
                        sampled=None, logprobs=None, entropy=None))]
    #[expect(clippy::too_many_arguments, reason = "one keyword a column")]
    fn from_columns(
        py: Python<'_>,
        prompt: Input<'_, u32>,
        parent: Input<'_, u32>,
        tree: Input<'_, u32>,
        status: Input<'_, u8>,
        reward: Input<'_, f64>,
        policy_version: Option<Input<'_, u32>>,
        token_start: Option<Input<'_, u64>>,
        token_ids: Option<Input<'_, u32>>,
        sampled: Option<Input<'_, bool>>,
        logprobs: Option<Input<'_, f32>>,
        entropy: Option<Input<'_, f64>>,
    ) -> PyResult<Self> {
        let columns = Columns {
            prompt: prompt.as_slice()?,
            parent: parent.as_slice()?,
            tree: tree.as_slice()?,
            status: status.as_slice()?,
            reward: reward.as_slice()?,
            policy_version: slice(&policy_version)?,
            entropy: slice(&entropy)?,
            token_start: slice(&token_start)?,
            token_ids: slice(&token_ids)?,
            sampled: slice(&sampled)?,
            logprobs: slice(&logprobs)?,
        };
        let forest = py.detach(|| Forest::from_columns(columns))?;
        Ok(Self { forest, lent: false })
    }

    #[getter]
    fn num_trees(&self) -> usize {
        self.forest.num_trees()
    }

    #[getter]
    fn num_nodes(&self) -> usize {
        self.forest.num_nodes()
    }

    #[getter]
    fn num_tokens(&self) -> usize {
        self.forest.num_tokens()
    }

    fn add_tree(&mut self, prompt: u32, token_ids: Input<'_, u32>) -> PyResult<u32> {
        Ok(self.growing()?.add_tree(prompt, token_ids.as_slice()?)?)
    }

    fn add_node(
        &mut self,
        parent: u32,
        token_ids: Input<'_, u32>,
        sampled: Input<'_, bool>,
        logprobs: Input<'_, f32>,
        status: u8,
        policy_version: u32,
    ) -> PyResult<u32> {
        let tokens =
            Tokens { token_ids: token_ids.as_slice()?, sampled: sampled.as_slice()?, logprobs: logprobs.as_slice()? };
        Ok(self.growing()?.add_node(parent, tokens, status, policy_version)?)
    }

    fn set_reward(&mut self, node: u32, reward: f64) -> PyResult<()> {
        Ok(self.growing()?.set_reward(node, reward)?)
    }

    fn context<'py>(&self, py: Python<'py>, node: u32) -> PyResult<Array<'py, u32>> {
        Ok(self.forest.context(node)?.into_pyarray(py))
    }

    fn path<'py>(&self, py: Python<'py>, node: u32) -> PyResult<Array<'py, u32>> {
        Ok(self.forest.path(node)?.into_pyarray(py))
    }

    fn leaves<'py>(&self, py: Python<'py>, tree: u32) -> PyResult<Array<'py, u32>> {
        Ok(self.forest.leaves(tree)?.into_pyarray(py))
    }

    fn gen_tokens<'py>(&self, py: Python<'py>) -> Array<'py, u32> {
        py.detach(|| self.forest.gen_tokens()).into_pyarray(py)
    }

    fn columns<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        slf.borrow_mut().lent = true;
        let py = slf.py();
        let dict = PyDict::new(py);
        let this = slf.borrow();
        let forest = &this.forest;
        let owner = slf.as_any();
        dict.set_item("prompt", view(owner, &forest.prompt))?;
        dict.set_item("root", view(owner, &forest.root))?;
        dict.set_item("parent", view(owner, &forest.parent))?;
        dict.set_item("tree", view(owner, &forest.tree))?;
        dict.set_item("depth", view(owner, &forest.depth))?;
        dict.set_item("status", view(owner, &forest.status))?;
        dict.set_item("reward", view(owner, &forest.reward))?;
        dict.set_item("policy_version", view(owner, &forest.policy_version))?;
        dict.set_item("entropy", view(owner, &forest.entropy))?;
        dict.set_item("token_start", view(owner, &forest.token_start))?;
        dict.set_item("token_ids", view(owner, &forest.token_ids))?;
        dict.set_item("sampled", view(owner, &forest.sampled))?;
        dict.set_item("logprobs", view(owner, &forest.logprobs))?;
        Ok(dict)
    }

    fn score(slf: &Bound<'_, Self>, estimator: &str, options: &Bound<'_, PyDict>) -> PyResult<PyScores> {
        let options = given_options(options)?;
        let this = slf.borrow();
        let forest = &this.forest;
        let scores = slf.py().detach(|| score(forest, estimator, &options))?;
        Ok(PyScores { forest: slf.clone().unbind(), scores })
    }

    #[pyo3(signature = (scores, prefix_weight=1.0))]
    fn chain_rows(&self, py: Python<'_>, scores: &PyScores, prefix_weight: f64) -> PyResult<PyChainRows> {
        let rows = py.detach(|| chain_rows(&self.forest, &scores.scores, prefix_weight))?;
        PyChainRows::new(py, rows)
    }

    #[pyo3(signature = (scores, prefix_weight=1.0, *, shared=true, prompts=None))]
    fn pack(
        &self,
        py: Python<'_>,
        scores: &PyScores,
        prefix_weight: f64,
        shared: bool,
        prompts: Option<Input<'_, u32>>,
    ) -> PyResult<PyLayout> {
        let prompts = slice(&prompts)?;
        let layout = py.detach(|| pack(&self.forest, &scores.scores, prefix_weight, shared, prompts))?;
        Ok(PyLayout { layout })
    }
}

fn slice<'a, T: Element>(column: &'a Option<Input<'_, T>>) -> PyResult<Option<&'a [T]>> {
    Ok(column.as_ref().map(|array| array.as_slice()).transpose()?)
}

/// A read-only view of a column that keeps its forest alive.
fn view<'py, T: Element>(owner: &Bound<'py, PyAny>, column: &[T]) -> Array<'py, T> {
    // SAFETY: `lent` is set first, so no method grows or moves the columns again, and the view holds the forest.
    let array = unsafe { PyArray1::borrow_from_array(&ArrayView1::from(column), owner.clone()) };
    array.readwrite().make_nonwriteable();
    array
}

#[pyclass(name = "Scores", module = "treegrpo_cli._core", frozen)]
struct PyScores {
    forest: Py<PyForest>,
    scores: Scores,
}

#[pymethods]
impl PyScores {
    #[getter]
    fn estimator(&self) -> &str {
        &self.scores.estimator
    }

    #[getter]
    fn options<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        options_dict(py, &self.scores.options)
    }

    #[getter]
    fn leaf_level(&self) -> bool {
        self.scores.leaf_advantage.is_some()
    }

    #[getter]
    fn depth<'py>(&self, py: Python<'py>) -> Array<'py, u32> {
        // copied when asked for: the forest may have grown since, and most callers of `score` never look
        self.forest.borrow(py).forest.depth[..self.scores.num_leaves.len()].to_vec().into_pyarray(py)
    }

    #[getter]
    fn num_leaves<'py>(slf: &Bound<'py, Self>) -> Array<'py, u32> {
        view(slf.as_any(), &slf.get().scores.num_leaves)
    }

    #[getter]
    fn value<'py>(slf: &Bound<'py, Self>) -> Array<'py, f64> {
        view(slf.as_any(), &slf.get().scores.value)
    }

    #[getter]
    fn advantage<'py>(slf: &Bound<'py, Self>) -> Array<'py, f64> {
        view(slf.as_any(), &slf.get().scores.advantage)
    }

    #[getter]
    fn leaf_advantage<'py>(slf: &Bound<'py, Self>) -> Option<Array<'py, f64>> {
        slf.get().scores.leaf_advantage.as_ref().map(|column| view(slf.as_any(), column))
    }
}

#[pyclass(name = "ChainRows", module = "treegrpo_cli._core", frozen, get_all)]
struct PyChainRows {
    row_start: Py<PyArray1<u64>>,
    input_ids: Py<PyArray1<u32>>,
    loss_mask: Py<PyArray1<bool>>,
    logprobs: Py<PyArray1<f32>>,
    advantages: Py<PyArray1<f32>>,
    weights: Py<PyArray1<f32>>,
    policy_version: Py<PyArray1<u32>>,
    group: Py<PyArray1<u32>>,
    leaf: Py<PyArray1<u32>>,
}

impl PyChainRows {
    fn new(py: Python<'_>, rows: ChainRows) -> PyResult<Self> {
        Ok(Self {
            row_start: rows.row_start.into_pyarray(py).unbind(),
            input_ids: rows.input_ids.into_pyarray(py).unbind(),
            loss_mask: rows.loss_mask.into_pyarray(py).unbind(),
            logprobs: rows.logprobs.into_pyarray(py).unbind(),
            advantages: rows.advantages.into_pyarray(py).unbind(),
            weights: rows.weights.into_pyarray(py).unbind(),
            policy_version: rows.policy_version.into_pyarray(py).unbind(),
            group: rows.group.into_pyarray(py).unbind(),
            leaf: rows.leaf.into_pyarray(py).unbind(),
        })
    }
}

#[pyclass(name = "Layout", module = "treegrpo_cli._core", frozen)]
struct PyLayout {
    layout: Layout,
}

#[pymethods]
impl PyLayout {
    #[getter]
    fn token_ids<'py>(slf: &Bound<'py, Self>) -> Array<'py, u32> {
        view(slf.as_any(), &slf.get().layout.tree.token_ids)
    }

    #[getter]
    fn positions<'py>(slf: &Bound<'py, Self>) -> Array<'py, u32> {
        view(slf.as_any(), &slf.get().layout.tree.positions)
    }

    #[getter]
    fn parent_token<'py>(slf: &Bound<'py, Self>) -> Array<'py, u32> {
        view(slf.as_any(), &slf.get().layout.tree.parent_token)
    }

    #[getter]
    fn subtree_end<'py>(slf: &Bound<'py, Self>) -> Array<'py, u32> {
        view(slf.as_any(), &slf.get().layout.tree.subtree_end)
    }

    #[getter]
    fn run_start<'py>(slf: &Bound<'py, Self>) -> Array<'py, u32> {
        view(slf.as_any(), &slf.get().layout.tree.run_start)
    }

    #[getter]
    fn path_tokens<'py>(slf: &Bound<'py, Self>) -> Array<'py, u32> {
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

    fn micro_batches(&self, py: Python<'_>, max_tokens: usize) -> PyResult<Vec<PyMicroBatch>> {
        let batches = py.detach(|| self.layout.micro_batches(max_tokens))?;
        Ok(batches.into_iter().map(|batch| PyMicroBatch::new(py, batch)).collect())
    }
}

#[pyclass(name = "MicroBatch", module = "treegrpo_cli._core", frozen, get_all)]
struct PyMicroBatch {
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
            turn: batch.turn.into_pyarray(py).unbind(),
            row: batch.row.map(|row| row.into_pyarray(py).unbind()),
        }
    }
}

#[pyfunction]
fn estimators() -> Vec<&'static str> {
    ESTIMATORS.to_vec()
}

#[pyfunction]
fn estimator_options<'py>(py: Python<'py>, estimator: &str) -> PyResult<Bound<'py, PyDict>> {
    defaults(estimator)?;
    options_dict(py, &resolve(estimator, &[])?.1)
}

#[pyfunction]
fn resolve_options<'py>(
    py: Python<'py>,
    estimator: &str,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    options_dict(py, &resolve(estimator, &given_options(options)?)?.1)
}

#[pyfunction]
fn select_uniform(
    py: Python<'_>,
    num_candidates: u32,
    n: u32,
    replacement: bool,
    key: Vec<i64>,
) -> PyResult<Array<'_, u32>> {
    Ok(select::select_uniform(num_candidates, n, replacement, &key)?.into_pyarray(py))
}

#[pyfunction]
fn keep_leaves(py: Python<'_>, num_leaves: u32, k: u32, key: Vec<i64>) -> PyResult<Array<'_, u32>> {
    Ok(select::keep_leaves(num_leaves, k, &key)?.into_pyarray(py))
}

#[pyfunction]
fn derive_seed(key: Vec<i64>) -> u64 {
    select::derive_seed(&key)
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NO_PARENT", NO_PARENT)?;
    module.add_class::<PyForest>()?;
    module.add_class::<PyScores>()?;
    module.add_class::<PyChainRows>()?;
    module.add_class::<PyLayout>()?;
    module.add_class::<PyMicroBatch>()?;
    module.add_function(wrap_pyfunction!(estimators, module)?)?;
    module.add_function(wrap_pyfunction!(estimator_options, module)?)?;
    module.add_function(wrap_pyfunction!(resolve_options, module)?)?;
    module.add_function(wrap_pyfunction!(select_uniform, module)?)?;
    module.add_function(wrap_pyfunction!(keep_leaves, module)?)?;
    module.add_function(wrap_pyfunction!(derive_seed, module)?)
}
