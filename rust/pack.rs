//! Forest + scores -> the training batch: one row a scored leaf, shared prefixes repeated.

use crate::advantage::Scores;
use crate::error::{Error, Result};
use crate::forest::Forest;
use crate::value::leaf_sums;

/// Rows of the tokens from root to leaf, flat: row b is `row_start[b]..row_start[b + 1]`.
///
/// `loss_mask` is true on sampled tokens, `logprobs` (nats) are those of sampling, `advantages` are A(l) or A(n);
/// `weights` are |L(n)|^(p − 1), so that a row's share of a node it has in common adds up to |L(n)|^p over the rows.
#[derive(Debug, Clone, Default)]
pub struct ChainRows {
    pub row_start: Vec<u64>,
    pub input_ids: Vec<u32>,
    pub loss_mask: Vec<bool>,
    pub logprobs: Vec<f32>,
    pub advantages: Vec<f32>,
    pub weights: Vec<f32>,
    pub policy_version: Vec<u32>,
    /// Per row: the prompt, and the leaf's node id.
    pub group: Vec<u32>,
    pub leaf: Vec<u32>,
}

/// Builds the rows of all scored leaves, in the order of their node ids.
pub fn chain_rows(forest: &Forest, scores: &Scores, prefix_weight: f64) -> Result<ChainRows> {
    if !(prefix_weight.is_finite() && prefix_weight >= 0.0) {
        let (got, expected) = (prefix_weight.to_string(), "a finite number, 0 or more".to_owned());
        return Err(Error::OptionValue { name: "prefix_weight".to_owned(), got, expected });
    }
    if leaf_sums(&forest.parent, &forest.reward).num_leaves != scores.num_leaves {
        return Err(Error::ForeignScores);
    }
    let mut rows = ChainRows { row_start: vec![0], ..ChainRows::default() };
    for leaf in (0..forest.num_nodes() as u32).filter(|&node| !forest.reward[node as usize].is_nan()) {
        for node in forest.path(leaf)? {
            push_node(&mut rows, forest, scores, prefix_weight, node as usize, leaf as usize);
        }
        rows.row_start.push(rows.input_ids.len() as u64);
        rows.group.push(forest.prompt[forest.tree[leaf as usize] as usize]);
        rows.leaf.push(leaf);
    }
    Ok(rows)
}

fn push_node(rows: &mut ChainRows, forest: &Forest, scores: &Scores, prefix_weight: f64, node: usize, leaf: usize) {
    let tokens = forest.token_range(node);
    let advantage = scores.leaf_advantage.as_ref().map_or(scores.advantage[node], |of_leaf| of_leaf[leaf]);
    let weight = f64::from(scores.num_leaves[node]).powf(prefix_weight - 1.0);
    rows.input_ids.extend_from_slice(&forest.token_ids[tokens.clone()]);
    rows.loss_mask.extend_from_slice(&forest.sampled[tokens.clone()]);
    rows.logprobs.extend_from_slice(&forest.logprobs[tokens.clone()]);
    let end = rows.input_ids.len();
    rows.advantages.resize(end, advantage as f32);
    rows.weights.resize(end, weight as f32);
    rows.policy_version.resize(end, forest.policy_version[node]);
}
