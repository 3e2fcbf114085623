//! `Forest` as Python sees it: any thread may read it while others read or grow it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert::{Array, Flags, Input, Key, Whole, given_options, given_terms, slice, view};
use super::frames::{self, count};
use super::layout::{PyChainRows, PyLayout};
use super::scores::PyScores;
use crate::advantage::{given, score_terms};
use crate::chains::Chains;
use crate::credit::Weighing;
use crate::error::{Error, Result};
use crate::forest::{Columns, DONE, Drawn, Forest, Tokens, or_filled};
use crate::pack::pack;
use crate::rows::chain_rows;
use crate::rules::{Context, select, selection_scores};

/// Columns of advantages of leaves and of nodes.
type GivenLevels<'py> = (Option<Input<'py, f64>>, Option<Input<'py, f64>>);

/// Readers take the forest as it stands and work without the lock; a change copies it where one of them still does.
#[pyclass(name = "Forest", module = "treegrpo_cli._core", frozen)]
pub struct PyForest {
    state: Mutex<State>,
}

struct State {
    forest: Arc<Forest>,
    /// Views of the columns were given away: nothing changes any more.
    lent: bool,
}

impl PyForest {
    fn of(forest: Forest) -> Self {
        Self::sharing(Arc::new(forest))
    }

    /// A forest of its own, whose rows are copied once one of those that share them changes.
    pub fn sharing(forest: Arc<Forest>) -> Self {
        Self { state: Mutex::new(State { forest, lent: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The forest as it stands.
    pub fn now(&self) -> Arc<Forest> {
        self.state().forest.clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Forest) -> Result<T>) -> PyResult<T> {
        // An error becomes Python's behind the lock: making one may let other threads run, and they may want the lock.
        Ok(self.changed(change)?)
    }

    fn changed<T>(&self, change: impl FnOnce(&mut Forest) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        if state.lent { Err(Error::Frozen) } else { change(Arc::make_mut(&mut state.forest)) }
    }
}

#[pymethods]
impl PyForest {
    #[new]
    fn new() -> Self {
        Self::of(Forest::new())
    }

    #[staticmethod]
    #[pyo3(signature = (*, prompt, parent, tree, status, reward, policy_version=None, token_start=None, token_ids=None,
                        sampled=None, logprobs=None, entropy=None, round=None, entropies=None, confidence=None,
                        tool_call=None, state_key=None))]
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
        sampled: Option<Flags>,
        logprobs: Option<Input<'_, f32>>,
        entropy: Option<Input<'_, f64>>,
        round: Option<Input<'_, u32>>,
        entropies: Option<Input<'_, f32>>,
        confidence: Option<Input<'_, f64>>,
        tool_call: Option<Flags>,
        state_key: Option<Input<'_, u64>>,
    ) -> PyResult<Self> {
        let copied = Forest::copied(Columns {
            prompt: prompt.as_slice()?,
            parent: parent.as_slice()?,
            tree: tree.as_slice()?,
            status: status.as_slice()?,
            reward: reward.as_slice()?,
            policy_version: slice(&policy_version)?,
            round: slice(&round)?,
            entropy: slice(&entropy)?,
            confidence: slice(&confidence)?,
            state_key: slice(&state_key)?,
            token_start: slice(&token_start)?,
            token_ids: slice(&token_ids)?,
            sampled: sampled.as_ref().map(|flags| &flags.0[..]),
            tool_call: tool_call.as_ref().map(|flags| &flags.0[..]),
            logprobs: slice(&logprobs)?,
            entropies: slice(&entropies)?,
        });
        Ok(Self::of(py.detach(|| copied.linked())?))
    }

    #[staticmethod]
    #[pyo3(signature = (*, row_start, token_ids, sampled, prompt, reward, logprobs=None, status=None,
                        policy_version=None, logprob_tolerance=f64::INFINITY))]
    #[expect(clippy::too_many_arguments, reason = "one keyword a column")]
    fn from_chains<'py>(
        py: Python<'py>,
        row_start: Input<'_, u64>,
        token_ids: Input<'_, u32>,
        sampled: Flags,
        prompt: Input<'_, u32>,
        reward: Input<'_, f64>,
        logprobs: Option<Input<'_, f32>>,
        status: Option<Input<'_, u8>>,
        policy_version: Option<Input<'_, u32>>,
        logprob_tolerance: f64,
    ) -> PyResult<(Self, Array<'py, u32>)> {
        let row_start = row_start.as_slice()?.to_vec();
        let token_ids = token_ids.as_slice()?.to_vec();
        let prompt = prompt.as_slice()?.to_vec();
        let reward = reward.as_slice()?.to_vec();
        let knows_logprobs = logprobs.is_some();
        let logprobs = or_filled(slice(&logprobs)?, token_ids.len(), 0.0);
        let status = or_filled(slice(&status)?, prompt.len(), DONE);
        let policy_version = or_filled(slice(&policy_version)?, prompt.len(), 0);
        let (mut forest, leaf) = py.detach(|| {
            let chains = Chains {
                row_start: &row_start,
                token_ids: &token_ids,
                sampled: &sampled.0,
                logprobs: &logprobs,
                prompt: &prompt,
                reward: &reward,
                status: &status,
                policy_version: &policy_version,
            };
            Forest::from_chains(&chains, logprob_tolerance)
        })?;
        forest.knows_logprobs = knows_logprobs;
        Ok((Self::of(forest), leaf.into_pyarray(py)))
    }

    #[staticmethod]
    #[pyo3(signature = (forests, orders=None))]
    fn concat(py: Python<'_>, forests: Vec<Py<Self>>, orders: Option<Vec<Input<'_, u32>>>) -> PyResult<Self> {
        let forests: Vec<_> = forests.iter().map(|forest| forest.get().now()).collect();
        let copied = |order: &Input<'_, u32>| Ok(order.as_slice()?.to_vec());
        let orders = orders.map(|orders| orders.iter().map(copied).collect::<PyResult<Vec<_>>>()).transpose()?;
        let joined = py.detach(|| {
            let forests: Vec<&Forest> = forests.iter().map(|forest| &**forest).collect();
            Forest::concat(&forests, orders.as_deref())
        })?;
        Ok(Self::of(joined))
    }

    #[getter]
    fn num_trees(&self) -> usize {
        self.now().num_trees()
    }

    #[getter]
    fn num_nodes(&self) -> usize {
        self.now().num_nodes()
    }

    #[getter]
    fn num_tokens(&self) -> usize {
        self.now().num_tokens()
    }

    #[getter]
    fn knows_rounds(&self) -> bool {
        self.now().knows_rounds
    }

    #[getter]
    fn knows_logprobs(&self) -> bool {
        self.now().knows_logprobs
    }

    #[getter]
    fn knows_tool_calls(&self) -> bool {
        self.now().knows_tool_calls
    }

    fn add_tree(&self, prompt: Whole<u32>, token_ids: Input<'_, u32>) -> PyResult<u32> {
        let token_ids = token_ids.as_slice()?;
        self.change(|forest| forest.add_tree(prompt.0, token_ids))
    }

    #[pyo3(signature = (parent, token_ids, sampled, logprobs, status, policy_version, round=Whole(0), entropies=None,
                        confidence=f64::NAN, tool_call=None, state_key=Whole(0)))]
    #[expect(clippy::too_many_arguments, reason = "one a column")]
    fn add_node(
        &self,
        parent: Whole<u32>,
        token_ids: Input<'_, u32>,
        sampled: Flags,
        logprobs: Input<'_, f32>,
        status: Whole<u8>,
        policy_version: Whole<u32>,
        round: Whole<u32>,
        entropies: Option<Input<'_, f32>>,
        confidence: f64,
        tool_call: Option<Flags>,
        state_key: Whole<u64>,
    ) -> PyResult<u32> {
        let tokens = Tokens { token_ids: token_ids.as_slice()?, sampled: &sampled.0, logprobs: logprobs.as_slice()? };
        let tool_call = tool_call.as_ref().map(|flags| &flags.0[..]);
        let (entropies, state_key) = (slice(&entropies)?, state_key.0);
        let drawn = Drawn { round: round.0, entropies, confidence, tool_call, state_key };
        self.change(|forest| forest.add_drawn(parent.0, tokens, status.0, policy_version.0, drawn))
    }

    fn set_reward(&self, node: Whole<u32>, reward: f64) -> PyResult<()> {
        self.change(|forest| forest.set_reward(node.0, reward))
    }

    fn context<'py>(&self, py: Python<'py>, node: Whole<u32>) -> PyResult<Array<'py, u32>> {
        Ok(self.now().context(node.0)?.into_pyarray(py))
    }

    fn path<'py>(&self, py: Python<'py>, node: Whole<u32>) -> PyResult<Array<'py, u32>> {
        Ok(self.now().path(node.0)?.into_pyarray(py))
    }

    fn leaves<'py>(&self, py: Python<'py>, tree: Whole<u32>) -> PyResult<Array<'py, u32>> {
        Ok(self.now().leaves(tree.0)?.into_pyarray(py))
    }

    fn gen_tokens<'py>(&self, py: Python<'py>) -> Array<'py, u32> {
        let forest = self.now();
        py.detach(|| forest.gen_tokens()).into_pyarray(py)
    }

    fn leaf_columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let forest = self.now();
        let leaves = py.detach(|| forest.leaf_columns())?;
        let dict = PyDict::new(py);
        dict.set_item("node", leaves.node.into_pyarray(py))?;
        dict.set_item("tree", leaves.tree.into_pyarray(py))?;
        dict.set_item("prompt", leaves.prompt.into_pyarray(py))?;
        dict.set_item("depth", leaves.depth.into_pyarray(py))?;
        dict.set_item("status", leaves.status.into_pyarray(py))?;
        dict.set_item("reward", leaves.reward.into_pyarray(py))?;
        dict.set_item("path_tokens", leaves.path_tokens.into_pyarray(py))?;
        dict.set_item("gen_tokens", leaves.gen_tokens.into_pyarray(py))?;
        dict.set_item("same_as", leaves.same_as.into_pyarray(py))?;
        Ok(dict)
    }

    #[pyo3(signature = (candidates, n, key, rule="uniform", options=None, *, prior=0.5, reward_range=None,
                        rewards_asked=false))]
    #[expect(clippy::too_many_arguments, reason = "one keyword a thing that is known")]
    fn select<'py>(
        &self,
        py: Python<'py>,
        candidates: Input<'_, u32>,
        n: Whole<u32>,
        key: Key,
        rule: &str,
        options: Option<&Bound<'_, PyDict>>,
        prior: f64,
        reward_range: Option<(f64, f64)>,
        rewards_asked: bool,
    ) -> PyResult<Array<'py, u32>> {
        let options = options.map(given_options).transpose()?.unwrap_or_default();
        let (forest, candidates) = (self.now(), candidates.as_slice()?.to_vec());
        let context = Context { prior, reward_range, rewards_asked };
        let drawn = py.detach(|| select(&forest, rule, &options, &candidates, n.0, &key.0, context))?;
        Ok(drawn.into_pyarray(py))
    }

    #[pyo3(signature = (candidates, rule, options=None, *, prior=0.5, reward_range=None, rewards_asked=false))]
    #[expect(clippy::too_many_arguments, reason = "one keyword a thing that is known")]
    fn selection_scores<'py>(
        &self,
        py: Python<'py>,
        candidates: Input<'_, u32>,
        rule: &str,
        options: Option<&Bound<'_, PyDict>>,
        prior: f64,
        reward_range: Option<(f64, f64)>,
        rewards_asked: bool,
    ) -> PyResult<Array<'py, f64>> {
        let options = options.map(given_options).transpose()?.unwrap_or_default();
        let (forest, candidates) = (self.now(), candidates.as_slice()?.to_vec());
        let context = Context { prior, reward_range, rewards_asked };
        let scores = py.detach(|| selection_scores(&forest, rule, &options, &candidates, context))?;
        Ok(scores.into_pyarray(py))
    }

    fn columns<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        // from here on `change` refuses, so that this forest stays as it is for as long as its owner is there
        let forest = {
            let mut state = slf.get().state();
            state.lent = true;
            state.forest.clone()
        };
        let (owner, dict) = (slf.as_any(), PyDict::new(slf.py()));
        dict.set_item("prompt", view(owner, &forest.prompt)?)?;
        dict.set_item("root", view(owner, &forest.root)?)?;
        dict.set_item("parent", view(owner, &forest.parent)?)?;
        dict.set_item("tree", view(owner, &forest.tree)?)?;
        dict.set_item("depth", view(owner, &forest.depth)?)?;
        dict.set_item("status", view(owner, &forest.status)?)?;
        dict.set_item("reward", view(owner, &forest.reward)?)?;
        dict.set_item("policy_version", view(owner, &forest.policy_version)?)?;
        dict.set_item("round", view(owner, &forest.round)?)?;
        dict.set_item("entropy", view(owner, &forest.entropy)?)?;
        dict.set_item("confidence", view(owner, &forest.confidence)?)?;
        dict.set_item("state_key", view(owner, &forest.state_key)?)?;
        dict.set_item("token_start", view(owner, &forest.token_start)?)?;
        dict.set_item("token_ids", view(owner, &forest.token_ids)?)?;
        dict.set_item("sampled", view(owner, &forest.sampled)?)?;
        dict.set_item("tool_call", view(owner, &forest.tool_call)?)?;
        dict.set_item("logprobs", view(owner, &forest.logprobs)?)?;
        dict.set_item("entropies", view(owner, &forest.entropies)?)?;
        Ok(dict)
    }

    fn snapshot(&self) -> Self {
        Self::sharing(self.now())
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
        let forest = self.now();
        let (trees, nodes) = (count(forest.num_trees(), "tree"), count(forest.num_nodes(), "node"));
        format!("Forest({trees}, {nodes}, {})", count(forest.num_tokens(), "token"))
    }

    #[pyo3(signature = (terms, options=None))]
    fn score(
        slf: &Bound<'_, Self>,
        terms: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyScores> {
        let (terms, forest) = (given_terms(terms, options)?, slf.get().now());
        let scores = slf.py().detach(|| score_terms(&forest, &terms))?;
        Ok(PyScores { forest: slf.clone().unbind(), scores })
    }

    #[pyo3(signature = (advantage, *, leaf_level, estimator="given", beside=None, weight=None, unmasked=None))]
    fn given_scores(
        slf: &Bound<'_, Self>,
        advantage: Input<'_, f64>,
        leaf_level: bool,
        estimator: &str,
        beside: Option<Input<'_, f64>>,
        weight: Option<Input<'_, f64>>,
        unmasked: Option<GivenLevels<'_>>,
    ) -> PyResult<PyScores> {
        let (column, beside, weight) = (Some(advantage.as_slice()?), slice(&beside)?, slice(&weight)?);
        let (leaf, node) = if leaf_level { (column, beside) } else { (beside, column) };
        let masked = unmasked.is_some();
        let (leaf_outside, node_outside) = unmasked.unwrap_or_default();
        let outside = masked.then_some((slice(&leaf_outside)?, slice(&node_outside)?));
        let scores = given(&slf.get().now(), (leaf, node), outside, weight, estimator)?;
        Ok(PyScores { forest: slf.clone().unbind(), scores })
    }

    #[pyo3(signature = (scores, prefix_weight=1.0))]
    fn chain_rows(&self, py: Python<'_>, scores: &Bound<'_, PyScores>, prefix_weight: f64) -> PyResult<PyChainRows> {
        let (forest, scores) = (self.now(), &scores.get().scores);
        let rows = py.detach(|| chain_rows(&forest, scores, prefix_weight))?;
        Ok(PyChainRows::new(py, rows))
    }

    #[pyo3(signature = (scores, prefix_weight=1.0, *, shared=true, row_mean=false, prompts=None))]
    fn pack(
        &self,
        py: Python<'_>,
        scores: &Bound<'_, PyScores>,
        prefix_weight: f64,
        shared: bool,
        row_mean: bool,
        prompts: Option<Input<'_, u32>>,
    ) -> PyResult<PyLayout> {
        let prompts = slice(&prompts)?.map(<[u32]>::to_vec);
        let (forest, scores) = (self.now(), &scores.get().scores);
        let weighing = Weighing { prefix_weight, row_mean };
        let layout = py.detach(|| pack(&forest, scores, weighing, shared, prompts.as_deref()))?;
        Ok(PyLayout { layout })
    }
}
