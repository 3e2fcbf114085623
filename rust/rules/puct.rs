//! `puct`: high values, and what the policy thinks likely and was tried least.

use super::turns::{needs_logprobs, surprisal_of};
use super::{Asked, Choice, Drawing, Rule, inherited_values};
use crate::error::Result;
use crate::forest::NO_PARENT;

/// Source: AlphaGo Zero (Silver et al. 2017), with the prior of a turn from its own tokens. A root, which nobody sampled,
/// counts as certain: S = 0. What has no scored leaf below has the value of its nearest ancestor that has one.
pub static PUCT: Rule = Rule {
    name: "puct",
    summary: "high values, and likely turns that were tried least",
    formula: "V(n) + c * P(n) * sqrt(k(root)) / (1 + k(n)), P = softmax over the tree's candidates of -S of the turn",
    needs: &["rewards", "logprobs"],
    reads_prompt: false,
    read: |options| {
        let c = options.non_negative("c", 1.0)?;
        let scores = move |asked: &Asked| {
            let prior = priors(asked)?;
            let sums = asked.leaf_sums("puct")?;
            let value = inherited_values(asked.forest, &sums);
            let leaves = |node: u32| f64::from(sums.num_leaves[node as usize]);
            let score = |(&node, prior): (&u32, f64)| {
                let root = asked.forest.root[asked.forest.tree[node as usize] as usize];
                value[node as usize] + c * prior * leaves(root).sqrt() / (1.0 + leaves(node))
            };
            Ok(asked.candidates.iter().zip(prior).map(score).collect())
        };
        Ok(Choice { scores: Box::new(scores), drawing: Drawing::Best { temperature: 0.0 } })
    },
};

/// softmax of −S over the candidates of each tree.
fn priors(asked: &Asked) -> Result<Vec<f64>> {
    asked.check_logprobs("puct")?;
    let forest = asked.forest;
    let surprisal = |&node: &u32| match forest.parent[node as usize] {
        NO_PARENT => Ok(0.0),
        _ => surprisal_of(forest, node as usize, 0).ok_or_else(|| needs_logprobs(forest, node, "puct")),
    };
    let surprisal = asked.candidates.iter().map(surprisal).collect::<Result<Vec<f64>>>()?;
    let tree_of = |node: u32| forest.tree[node as usize] as usize;
    let mut least = vec![f64::INFINITY; forest.num_trees()];
    for (&node, surprisal) in asked.candidates.iter().zip(&surprisal) {
        least[tree_of(node)] = least[tree_of(node)].min(*surprisal);
    }
    let weight = |(&node, surprisal): (&u32, f64)| (least[tree_of(node)] - surprisal).exp();
    let mut prior: Vec<f64> = asked.candidates.iter().zip(surprisal).map(weight).collect();
    let mut total = vec![0.0; forest.num_trees()];
    for (&node, weight) in asked.candidates.iter().zip(&prior) {
        total[tree_of(node)] += weight;
    }
    prior.iter_mut().zip(asked.candidates).for_each(|(weight, &node)| *weight /= total[tree_of(node)]);
    Ok(prior)
}
