//! Scores -> what the targets of each node are worth: the parts of the advantage over its leaves, and how much they count.

use crate::advantage::Scores;
use crate::forest::Forest;
use crate::value::leaf_sums;

/// How much a token counts.
#[derive(Debug, Clone, Copy)]
pub struct Weighing {
    /// p of |L|^p.
    pub prefix_weight: f64,
    /// Whether a row of T targets counts each of them 1/T, so that rows count the same.
    pub row_mean: bool,
}

impl Default for Weighing {
    fn default() -> Self {
        Self { prefix_weight: 1.0, row_mean: false }
    }
}

/// What a turn's targets carry: p is the prefix weight, S⁺ and S⁻ sum max(A, 0) and min(A, 0) over scored leaves.
///
/// Shared: |L|^(p − 1) S⁺, |L|^(p − 1) S⁻ and |L|^p over all leaves below. In a row: the leaf's own part of these.
/// With `row_mean`, each leaf's part is divided by its row's targets. `gain_weight` and `penalty_weight`: the part of
/// `weight` that is of leaves with A > 0, and with A < 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credit {
    pub gain: f64,
    pub penalty: f64,
    pub weight: f64,
    pub gain_weight: f64,
    pub penalty_weight: f64,
}

impl Credit {
    /// One advantage with all the weight.
    pub fn of(weight: f64, advantage: f64) -> Self {
        let part = |counts: bool| if counts { weight } else { 0.0 };
        Self {
            gain: weight * advantage.max(0.0),
            penalty: weight * advantage.min(0.0),
            weight,
            gain_weight: part(advantage > 0.0),
            penalty_weight: part(advantage < 0.0),
        }
    }
}

/// What each scored leaf's tokens count for it: 1, or one over its row's targets (0 where it has none). Else NaN.
pub(crate) fn leaf_weights(forest: &Forest, row_mean: bool) -> Vec<f64> {
    let targets = if row_mean { path_targets(forest) } else { vec![1; forest.num_nodes()] };
    let weight = |num: u32| if num == 0 { 0.0 } else { f64::from(num).recip() };
    targets
        .iter()
        .zip(&forest.reward)
        .map(|(&num, reward)| if reward.is_nan() { f64::NAN } else { weight(num) })
        .collect()
}

/// Per node: the targets from the root to its end. What is sampled at the start of a path is none.
fn path_targets(forest: &Forest) -> Vec<u32> {
    let mut targets = forest.gen_tokens();
    let mut is_empty = vec![true; forest.num_nodes()];
    for node in 0..forest.num_nodes() {
        let (above, own) = (forest.parent[node] as usize, forest.token_range(node));
        let is_start = is_empty.get(above).copied().unwrap_or(true);
        if is_start && forest.sampled[own.clone()].first() == Some(&true) {
            targets[node] -= 1;
        }
        targets[node] += targets.get(above).copied().unwrap_or(0);
        is_empty[node] = is_start && own.is_empty();
    }
    targets
}

/// Per node: its credit over all scored leaves below, each of its weight; none where there is no such leaf.
pub(crate) fn node_credits(
    forest: &Forest,
    scores: &Scores,
    prefix_weight: f64,
    leaf_weight: &[f64],
) -> Vec<Option<Credit>> {
    let over_leaves = |column: &[f64]| leaf_sums(&forest.parent, column).sum;
    let weights = over_leaves(leaf_weight);
    let scale = |node: usize| f64::from(scores.num_leaves[node]).powf(prefix_weight - 1.0);
    let has_leaf = |node: &usize| scores.num_leaves[*node] > 0;
    let Some(advantage) = &scores.leaf_advantage else {
        let credit = |node: usize| Credit::of(scale(node) * weights[node], scores.advantage[node]);
        return (0..forest.num_nodes()).map(|node| Some(node).filter(has_leaf).map(credit)).collect();
    };
    let each = |of: fn(Credit) -> f64| {
        let leaves = leaf_weight.iter().zip(advantage);
        over_leaves(
            &leaves
                .map(|(&weight, &a)| if weight.is_nan() { weight } else { of(Credit::of(weight, a)) })
                .collect::<Vec<_>>(),
        )
    };
    let gain = each(|credit| credit.gain);
    let penalty = each(|credit| credit.penalty);
    let gain_weight = each(|credit| credit.gain_weight);
    let penalty_weight = each(|credit| credit.penalty_weight);
    let credit = |node: usize| Credit {
        gain: scale(node) * gain[node],
        penalty: scale(node) * penalty[node],
        weight: scale(node) * weights[node],
        gain_weight: scale(node) * gain_weight[node],
        penalty_weight: scale(node) * penalty_weight[node],
    };
    (0..forest.num_nodes()).map(|node| Some(node).filter(has_leaf).map(credit)).collect()
}
