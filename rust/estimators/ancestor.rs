//! `ancestor`: a leaf against the leaves below each turn that leads to it.

use super::{Estimator, LeafRule, Rule};
use crate::error::Result;
use crate::explain::{Comparison, Figures, Trace};
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Case, Measure};
use crate::options::Reader;
use crate::value::{LeafSums, leaf_sums};

/// Source: TreePO (arXiv 2508.17445), whose subgroups these are.
pub static ANCESTOR: Estimator = Estimator {
    name: "ancestor",
    summary: "each leaf against all leaves below each turn that leads to it, up to its tree's root",
    formula: "A(l) = weighted mean, over the ancestors a of l with several leaves, of R(l) - mean of R over L(a)",
    rule: Rule::Leaf(read),
    weighs: false,
    reads_tokens: false,
};

const GROUP: &str = "leaves below an ancestor";

/// Of the ancestors above a node, itself included: the sum of their weights, and of weight times mean reward.
#[derive(Debug, Clone, Copy, Default)]
struct Above {
    weight: f64,
    reward: f64,
}

fn read(options: &mut Reader) -> Result<LeafRule> {
    let by_leaves = options.choice("weight", "equal", &[("equal", false), ("leaves", true)])?;
    let weight = move |num_leaves: u32| match num_leaves {
        0 | 1 => 0.0,
        _ if by_leaves => f64::from(num_leaves),
        _ => 1.0,
    };
    Ok(Box::new(move |forest, trace| Ok(against_ancestors(forest, weight, trace))))
}

fn against_ancestors(forest: &Forest, weight: impl Fn(u32) -> f64, trace: &mut Trace) -> Vec<f64> {
    let sums = leaf_sums(&forest.parent, &forest.reward);
    let mut above: Vec<Above> = Vec::with_capacity(forest.num_nodes());
    let mut advantage = forest.reward.clone();
    for (node, &parent) in forest.parent.iter().enumerate() {
        let Above { weight: total, reward } = above.get(parent as usize).copied().unwrap_or_default();
        if !advantage[node].is_nan() {
            advantage[node] = if total > 0.0 { advantage[node] - reward / total } else { 0.0 };
        }
        let (own, mean) = (weight(sums.num_leaves[node]), sums.sum[node] / f64::from(sums.num_leaves[node]));
        above.push(if own > 0.0 {
            Above { weight: total + own, reward: reward + own * mean }
        } else {
            Above { weight: total, reward }
        });
    }
    if trace.is_on() {
        (0..forest.num_nodes()).for_each(|leaf| note(forest, leaf, &sums, &weight, above[leaf].weight, trace));
    }
    advantage
}

/// A leaf's differences to its ancestors' means, from the last turn up.
fn note(forest: &Forest, leaf: usize, sums: &LeafSums, weight: impl Fn(u32) -> f64, total: f64, trace: &mut Trace) {
    let reward = forest.reward[leaf];
    let mut above = forest.parent[leaf];
    if reward.is_nan() || !trace.watches(leaf as u32) {
        return;
    }
    if total == 0.0 {
        let alone = Comparison { name: "ancestor", group: GROUP, weight: 1.0 };
        let figures = Figures { size: 1, mean: reward, std: f64::NAN };
        return trace.note_one(alone, leaf as u32, reward, figures, Measure::zero(Case::Single));
    }
    while above != NO_PARENT {
        let size = sums.num_leaves[above as usize];
        let mean = sums.sum[above as usize] / f64::from(size);
        if weight(size) > 0.0 {
            let comparison = Comparison { name: "ancestor", group: GROUP, weight: weight(size) / total };
            let measure = Measure { case: Case::Compared, baseline: mean, factor: 1.0, scale: 1.0 };
            trace.note_one(comparison, leaf as u32, reward, Figures { size, mean, std: f64::NAN }, measure);
        }
        above = forest.parent[above as usize];
    }
}
