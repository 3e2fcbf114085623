//! Scores -> what the targets of each node are worth: the parts of the advantage over its leaves, and how much they count.

use crate::advantage::{Levels, Scores};
use crate::forest::Forest;
use crate::leaves_below::{LeavesBelow, Positive};
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

/// What a turn's targets carry: p is the prefix weight, S⁺ and S⁻ sum max(A, 0) and min(A, 0) over scored leaves, where
/// A = A(l) + a(n).
///
/// Shared: |L|^(p − 1) S⁺, |L|^(p − 1) S⁻ and |L|^p over all leaves below. In a row: the leaf's own part of these. A weight
/// that the estimator gives the node stands in place of |L|^p.
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

    fn times(self, factor: f64) -> Self {
        Self {
            gain: factor * self.gain,
            penalty: factor * self.penalty,
            weight: factor * self.weight,
            gain_weight: factor * self.gain_weight,
            penalty_weight: factor * self.penalty_weight,
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

/// Per node: its credit by these advantages over all scored leaves below, each of its weight; none where there is no such
/// leaf.
pub(crate) fn node_credits(
    forest: &Forest,
    scores: &Scores,
    levels: Levels,
    prefix_weight: f64,
    leaf_weight: &[f64],
) -> Vec<Option<Credit>> {
    let weights = leaf_sums(&forest.parent, leaf_weight).sum;
    let credits: Vec<Credit> = match levels {
        (Some(leaf), Some(node)) => of_sums(forest, &scores.num_leaves, &weights, leaf_weight, leaf, node),
        (Some(leaf), None) => of_leaves(forest, &weights, leaf_weight, leaf),
        (None, Some(node)) => weights.iter().zip(node).map(|(&weight, &a)| Credit::of(weight, a)).collect(),
        (None, None) => weights.iter().map(|&weight| Credit::of(weight, 0.0)).collect(),
    };
    let scaled = |(node, credit): (usize, Credit)| {
        (scores.num_leaves[node] > 0).then(|| credit.times(scores.share(node, prefix_weight)))
    };
    credits.into_iter().enumerate().map(scaled).collect()
}

/// What the leaves below each node add up to, each with its own advantage.
fn of_leaves(forest: &Forest, weights: &[f64], leaf_weight: &[f64], leaf: &[f64]) -> Vec<Credit> {
    let each = |of: fn(Credit) -> f64| {
        let part = |(&weight, &a): (&f64, &f64)| if weight.is_nan() { weight } else { of(Credit::of(weight, a)) };
        leaf_sums(&forest.parent, &leaf_weight.iter().zip(leaf).map(part).collect::<Vec<_>>()).sum
    };
    let gain = each(|credit| credit.gain);
    let penalty = each(|credit| credit.penalty);
    let gain_weight = each(|credit| credit.gain_weight);
    let penalty_weight = each(|credit| credit.penalty_weight);
    let credit = |node: usize| Credit {
        gain: gain[node],
        penalty: penalty[node],
        weight: weights[node],
        gain_weight: gain_weight[node],
        penalty_weight: penalty_weight[node],
    };
    (0..forest.num_nodes()).map(credit).collect()
}

/// The same of A(l) + a(n): which leaves gain is another question at each node.
fn of_sums(
    forest: &Forest,
    num_leaves: &[u32],
    weights: &[f64],
    leaf_weight: &[f64],
    leaf: &[f64],
    node: &[f64],
) -> Vec<Credit> {
    let negated = |column: &[f64]| column.iter().map(|x| -x).collect::<Vec<_>>();
    let below = LeavesBelow::new(forest, num_leaves);
    let gains = below.positive(leaf_weight, leaf, node);
    let losses = below.positive(leaf_weight, &negated(leaf), &negated(node));
    let parts = gains.into_iter().zip(losses).zip(weights);
    let credit = |((gain, loss), &weight): ((Positive, Positive), &f64)| Credit {
        gain: gain.sum,
        penalty: -loss.sum,
        weight,
        gain_weight: gain.weight,
        penalty_weight: loss.weight,
    };
    parts.map(credit).collect()
}
