//! `anchor`: a leaf against all leaves of its prompt, and a turn against those that were taken in an equal state.

use std::collections::HashMap;

use super::grpo::within_prompts;
use super::{Estimator, LeafRule, NodeColumns, NodeRule, Rule, leaf_means};
use crate::error::Result;
use crate::explain::Comparison;
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Groups, Normaliser, normalise_groups};
use crate::options::Reader;
use crate::value::first_trees;

/// Source: GiGPO (arXiv 2505.10978). States are equal where the environment's keys are; where it gave none, where the
/// observations before the turn have the same token ids.
pub static ANCHOR: Estimator = Estimator {
    name: "anchor",
    summary: "each leaf as grpo has it, and each turn against those that were taken in an equal state",
    formula: "A(l) + a(n) = N over the prompt's leaves of R(l) + weight * N over the turns taken in an equal state \
              of the mean over L(n) of discount^(turns to l) * R(l)",
    rule: Rule::Both(read),
    weighs: false,
    reads_tokens: true,
};

fn read(options: &mut Reader) -> Result<(LeafRule, NodeRule)> {
    let norm = Normaliser::read_leaf(options)?;
    let weight = options.non_negative("weight", 1.0)?;
    let discount = options.number("discount", 1.0, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
    let whole = Comparison { name: "grpo", group: "prompt", weight: 1.0 };
    let anchored = Comparison { name: "anchor", group: "turns taken in an equal state", weight };
    let leaf: LeafRule = Box::new(move |forest, trace| within_prompts(forest, norm, trace, whole));
    let node: NodeRule = Box::new(move |forest, sum, num_leaves, trace| {
        let mut advantage = returns(forest, num_leaves, discount);
        let groups = in_equal_states(forest, num_leaves);
        normalise_groups(forest, &groups, norm, &mut advantage, trace, anchored)?;
        advantage.iter_mut().for_each(|a| *a *= weight);
        Ok(NodeColumns { value: leaf_means(forest, sum, num_leaves)?, advantage, weight: None })
    });
    Ok((leaf, node))
}

/// Per node: the mean over its leaves of discount^(turns to the leaf) · R; NaN without one.
fn returns(forest: &Forest, num_leaves: &[u32], discount: f64) -> Vec<f64> {
    let mut total: Vec<f64> = forest.reward.iter().map(|reward| if reward.is_nan() { 0.0 } else { *reward }).collect();
    for (node, &parent) in forest.parent.iter().enumerate().rev() {
        let below = discount * total[node];
        if let Some(above) = total.get_mut(parent as usize) {
            *above += below;
        }
    }
    total.iter().zip(num_leaves).map(|(total, &num)| total / f64::from(num)).collect()
}

/// What a turn was taken in.
#[derive(PartialEq, Eq, Hash)]
enum State<'a> {
    Key(u64),
    Observed(&'a [u32]),
}

/// Nodes below the roots that have a scored leaf, grouped by prompt and by the state before them.
fn in_equal_states(forest: &Forest, num_leaves: &[u32]) -> Groups {
    let first = first_trees(&forest.prompt);
    let mut number: HashMap<(u32, State), u32> = HashMap::new();
    let mut group = vec![NO_PARENT; forest.num_nodes()];
    let mut observed = vec![NO_PARENT; forest.num_nodes()]; // the same for turns that only what was observed tells apart
    let mut nodes = vec![];
    for (node, &parent) in forest.parent.iter().enumerate() {
        if parent == NO_PARENT || num_leaves[node] == 0 {
            continue;
        }
        nodes.push(node as u32);
        let (prompt, key, next) = (first[forest.tree[node] as usize], forest.state_key[node], number.len() as u32);
        let known = &mut observed[parent as usize];
        group[node] = if key != 0 {
            *number.entry((prompt, State::Key(key))).or_insert(next)
        } else {
            if *known == NO_PARENT {
                let state = State::Observed(observation(forest, parent as usize));
                *known = *number.entry((prompt, state)).or_insert(next);
            }
            *known
        };
    }
    Groups::new(number.len(), &nodes, |node| group[node as usize])
}

/// A node's tokens behind the last one that was sampled: all of a root's.
fn observation(forest: &Forest, node: usize) -> &[u32] {
    let tokens = forest.token_range(node);
    let start = forest.sampled[tokens.clone()].iter().rposition(|&sampled| sampled).map_or(0, |last| last + 1);
    &forest.token_ids[tokens][start..]
}
