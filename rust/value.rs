//! Rewards travel up: sums over the scored leaves below each node, and the values made of them.

use crate::error::{Fault, Result};
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::Groups;
use crate::options::Reader;

/// How a node's value is made of what is below it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueRule {
    LeafMean,
    ChildMean,
    Max,
    Smoothed { kappa: f64 },
    ChildSoftmax { tau: f64 },
}

impl ValueRule {
    /// Reads `value`, and `kappa` or `tau` beside the rule that has it.
    pub fn read(options: &mut Reader) -> Result<Self> {
        let (kappa, tau) = (1.0, 1.0);
        let rules = [
            ("leaf-mean", Self::LeafMean),
            ("child-mean", Self::ChildMean),
            ("max", Self::Max),
            ("smoothed", Self::Smoothed { kappa }),
            ("child-softmax", Self::ChildSoftmax { tau }),
        ];
        let rule = options.choice("value", "leaf-mean", &rules)?;
        let smoothed = matches!(rule, Self::Smoothed { .. });
        let given_kappa = options.only("value=smoothed", smoothed, |options| options.non_negative("kappa", kappa))?;
        let softmax = matches!(rule, Self::ChildSoftmax { .. });
        let given_tau = options.only("value=child-softmax", softmax, |options| {
            options.number("tau", tau, "a positive number", |x| x > 0.0)
        })?;
        Ok(match rule {
            Self::LeafMean | Self::ChildMean | Self::Max => rule,
            Self::Smoothed { kappa } => Self::Smoothed { kappa: given_kappa.unwrap_or(kappa) },
            Self::ChildSoftmax { tau } => Self::ChildSoftmax { tau: given_tau.unwrap_or(tau) },
        })
    }
}

/// Per node: the sum of the rewards of the scored leaves below it (itself included), and their number.
#[derive(Debug, Clone)]
pub struct LeafSums {
    pub sum: Vec<f64>,
    pub num_leaves: Vec<u32>,
}

/// One backward pass: a parent precedes its child, so every subtree is complete when its root is reached.
pub fn leaf_sums(parent: &[u32], reward: &[f64]) -> LeafSums {
    let mut sum: Vec<f64> = reward.iter().map(|&r| if r.is_nan() { 0.0 } else { r }).collect();
    let mut num_leaves: Vec<u32> = reward.iter().map(|r| u32::from(!r.is_nan())).collect();
    for (node, &above) in parent.iter().enumerate().rev() {
        let (below, count) = (sum[node], num_leaves[node]);
        if let (Some(sum), Some(num)) = (sum.get_mut(above as usize), num_leaves.get_mut(above as usize)) {
            *sum += below;
            *num += count;
        }
    }
    LeafSums { sum, num_leaves }
}

/// Which trees belong together: `first_tree[t]` is the first tree of t's prompt.
pub fn first_trees(prompt: &[u32]) -> Vec<u32> {
    let mut seen = std::collections::HashMap::new();
    prompt.iter().enumerate().map(|(tree, prompt)| *seen.entry(*prompt).or_insert(tree as u32)).collect()
}

/// Per tree: the root that stands for its state. The first tree's of the prompt where roots are shared, else its own.
pub fn anchors(forest: &Forest, shared_roots: bool) -> Vec<u32> {
    if !shared_roots {
        return forest.root.clone();
    }
    first_trees(&forest.prompt).iter().map(|&tree| forest.root[tree as usize]).collect()
}

/// Per node: the node whose children its siblings are; `NO_PARENT` on a root.
pub fn sibling_keys(forest: &Forest, anchors: &[u32]) -> Vec<u32> {
    let key = |(node, &parent): (usize, &u32)| match forest.depth[node] {
        1 => anchors[forest.tree[node] as usize],
        _ => parent,
    };
    forest.parent.iter().enumerate().map(key).collect()
}

/// Nodes with a value, grouped with their siblings.
pub fn sibling_groups(forest: &Forest, num_leaves: &[u32], anchors: &[u32]) -> Groups {
    let keys = sibling_keys(forest, anchors);
    let valued = |&node: &u32| keys[node as usize] != NO_PARENT && num_leaves[node as usize] > 0;
    let nodes: Vec<u32> = (0..forest.num_nodes() as u32).filter(valued).collect();
    Groups::new(forest.num_nodes(), &nodes, |node| keys[node as usize])
}

/// Nodes with a reward.
pub fn scored_leaves(forest: &Forest) -> Vec<u32> {
    (0..forest.num_nodes() as u32).filter(|&node| !forest.reward[node as usize].is_nan()).collect()
}

/// Per node: its value, NaN where no scored leaf is below it. Every shared root shows the prompt's value.
///
/// `sum` and `num_leaves` are those of [`leaf_sums`]; the values take the room of the sums.
pub fn values(
    forest: &Forest,
    sum: Vec<f64>,
    num_leaves: &[u32],
    rule: ValueRule,
    anchors: &[u32],
) -> Result<Vec<f64>> {
    let mut value = match rule {
        ValueRule::LeafMean => leaf_means(forest, sum, num_leaves, anchors),
        ValueRule::Smoothed { kappa } => smoothed(forest, sum, num_leaves, anchors, kappa),
        ValueRule::ChildMean => from_children(forest, num_leaves, anchors, |_| (1.0, 1.0)),
        ValueRule::Max => maxima(forest, num_leaves, anchors),
        ValueRule::ChildSoftmax { tau } => {
            let weight = softmax_weights(forest, num_leaves, anchors, tau)?;
            from_children(forest, num_leaves, anchors, |node| (weight[node], weight[node]))
        }
    };
    for (value, &num_leaves) in value.iter_mut().zip(num_leaves) {
        if num_leaves == 0 {
            *value = f64::NAN;
        }
    }
    Ok(value)
}

fn leaf_means(forest: &Forest, sum: Vec<f64>, num_leaves: &[u32], anchors: &[u32]) -> Vec<f64> {
    let roots = root_means(forest, &sum, num_leaves, anchors);
    let mut value: Vec<f64> = sum.into_iter().zip(num_leaves).map(|(sum, &num)| sum / f64::from(num)).collect();
    for (&root, mean) in forest.root.iter().zip(roots) {
        value[root as usize] = mean;
    }
    value
}

/// Per tree: the mean over all leaves of the trees whose roots are one.
fn root_means(forest: &Forest, sum: &[f64], num_leaves: &[u32], anchors: &[u32]) -> Vec<f64> {
    let mut total = vec![(0.0, 0.0); forest.num_trees()];
    let at = |anchor: u32| forest.tree[anchor as usize] as usize;
    for (&root, &anchor) in forest.root.iter().zip(anchors) {
        total[at(anchor)].0 += sum[root as usize];
        total[at(anchor)].1 += f64::from(num_leaves[root as usize]);
    }
    anchors.iter().map(|&anchor| total[at(anchor)].0 / total[at(anchor)].1).collect()
}

/// V(n) = (ΣR + κ·V(p)) / (|L| + κ), from the roots down.
fn smoothed(forest: &Forest, sum: Vec<f64>, num_leaves: &[u32], anchors: &[u32], kappa: f64) -> Vec<f64> {
    let roots = root_means(forest, &sum, num_leaves, anchors);
    let mut value = sum;
    for (node, &parent) in forest.parent.iter().enumerate() {
        value[node] = match value.get(parent as usize) {
            Some(above) => (value[node] + kappa * above) / (f64::from(num_leaves[node]) + kappa),
            None => roots[forest.tree[node] as usize],
        };
    }
    value
}

/// The mean of the children's values, each with `weight(child)` = (numerator, denominator).
fn from_children(
    forest: &Forest,
    num_leaves: &[u32],
    anchors: &[u32],
    weight: impl Fn(usize) -> (f64, f64),
) -> Vec<f64> {
    let mut total = vec![(0.0, 0.0); forest.num_nodes()];
    fold_up(
        forest,
        num_leaves,
        anchors,
        &mut total,
        |total, node, value| {
            let (up, down) = weight(node);
            *total = (total.0 + up * value, total.1 + down);
        },
        |total| total.0 / total.1,
    )
}

fn maxima(forest: &Forest, num_leaves: &[u32], anchors: &[u32]) -> Vec<f64> {
    let mut best = vec![f64::NEG_INFINITY; forest.num_nodes()];
    fold_up(forest, num_leaves, anchors, &mut best, |best, _, value| *best = best.max(value), |best| *best)
}

/// Folds the values of children into their parent's `state`, backwards; shared roots fold into one.
fn fold_up<S>(
    forest: &Forest,
    num_leaves: &[u32],
    anchors: &[u32],
    state: &mut [S],
    mut add: impl FnMut(&mut S, usize, f64),
    finish: impl Fn(&S) -> f64,
) -> Vec<f64> {
    let mut value = forest.reward.clone();
    for node in (0..forest.num_nodes()).rev() {
        if forest.parent[node] == NO_PARENT || num_leaves[node] == 0 {
            continue;
        }
        if value[node].is_nan() {
            value[node] = finish(&state[node]);
        }
        let above = if forest.depth[node] == 1 { anchors[forest.tree[node] as usize] } else { forest.parent[node] };
        add(&mut state[above as usize], node, value[node]);
    }
    for (&root, &anchor) in forest.root.iter().zip(anchors) {
        value[root as usize] = finish(&state[anchor as usize]);
    }
    value
}

/// exp((entropy − the largest among the siblings) / τ), per node.
fn softmax_weights(forest: &Forest, num_leaves: &[u32], anchors: &[u32], tau: f64) -> Result<Vec<f64>> {
    let keys = sibling_keys(forest, anchors);
    let scored = |node: &usize| keys[*node] != NO_PARENT && num_leaves[*node] > 0;
    let mut largest = vec![f64::NEG_INFINITY; forest.num_nodes()];
    for node in (0..forest.num_nodes()).filter(scored) {
        if forest.entropy[node].is_nan() {
            return Err(forest.fault(node, Fault::NoEntropy));
        }
        let largest = &mut largest[keys[node] as usize];
        *largest = largest.max(forest.entropy[node]);
    }
    let mut weight = vec![0.0; forest.num_nodes()];
    for node in (0..forest.num_nodes()).filter(scored) {
        weight[node] = ((forest.entropy[node] - largest[keys[node] as usize]) / tau).exp();
    }
    Ok(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::tests::{chain, planted, published};

    fn shown(forest: &Forest, rule: ValueRule, shared_roots: bool) -> Vec<f64> {
        let sums = leaf_sums(&forest.parent, &forest.reward);
        values(forest, sums.sum, &sums.num_leaves, rule, &anchors(forest, shared_roots)).unwrap()
    }

    fn close(actual: &[f64], expected: &[f64]) -> bool {
        actual.len() == expected.len() && actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn leaf_sums_count_scored_leaves_only() {
        let nan = f64::NAN;
        let sums = leaf_sums(&[NO_PARENT, 0, 1, 1, 0], &[nan, nan, 0.25, nan, 0.5]);
        assert_eq!(sums.sum, [0.75, 0.25, 0.25, 0.0, 0.5]);
        assert_eq!(sums.num_leaves, [2, 1, 1, 0, 1]);
    }

    #[test]
    fn published_values() {
        let forest = published(false);
        let leaves = [0.0, 1.0, 0.0, 2.0 / 3.0, 1.0, 1.0, 0.0];
        let leaf_mean = shown(&forest, ValueRule::LeafMean, true);
        assert!(close(&leaf_mean, &[&[0.5, 0.5, 2.0 / 3.0], &leaves[..]].concat()));
        let child_mean = shown(&forest, ValueRule::ChildMean, true);
        assert!(close(&child_mean, &[&[7.0 / 18.0, 0.5, 2.0 / 3.0], &leaves[..]].concat()));
        assert_eq!(shown(&forest, ValueRule::Max, true), [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn smoothing_pulls_a_child_towards_its_parent() {
        let value = shown(&published(false), ValueRule::Smoothed { kappa: 1.0 }, true);
        assert!(close(&value[..4], &[0.5, 0.5, 0.625, 0.25]));
    }

    #[test]
    fn shared_roots_show_the_value_of_the_prompt() {
        let nan = f64::NAN;
        let parent = [NO_PARENT, 0, NO_PARENT, 2, 2];
        let forest = planted(&[4, 4], &parent, &[0, 0, 1, 1, 1], &[nan, 1.0, nan, 0.0, 0.0]).unwrap();
        for rule in [ValueRule::LeafMean, ValueRule::ChildMean] {
            let shared = shown(&forest, rule, true);
            assert!(close(&[shared[0], shared[2]], &[1.0 / 3.0; 2]));
            let apart = shown(&forest, rule, false);
            assert_eq!((apart[0], apart[2]), (1.0, 0.0));
        }
    }

    #[test]
    fn a_node_without_scored_leaves_has_no_value() {
        let nan = f64::NAN;
        let forest = planted(&[0], &[NO_PARENT, 0, 0, 2], &[0; 4], &[nan, 1.0, nan, nan]).unwrap();
        for rule in [ValueRule::LeafMean, ValueRule::ChildMean, ValueRule::Max, ValueRule::Smoothed { kappa: 2.0 }] {
            let value = shown(&forest, rule, true);
            assert_eq!(value[..2], [1.0, 1.0]);
            assert!(value[2].is_nan() && value[3].is_nan());
        }
    }

    #[test]
    fn softmax_weights_need_an_entropy_and_follow_it() {
        let mut forest = published(false);
        let rule = ValueRule::ChildSoftmax { tau: 0.5 };
        let sums = leaf_sums(&forest.parent, &forest.reward);
        let refused = values(&forest, sums.sum, &sums.num_leaves, rule, &anchors(&forest, true));
        assert_eq!(refused, Err(forest.fault(1, Fault::NoEntropy)));
        forest.entropy = vec![0.0; forest.num_nodes()];
        assert_eq!(shown(&forest, rule, true), shown(&forest, ValueRule::ChildMean, true));
        forest.entropy[4] = 0.5 * 3_f64.ln();
        assert!(close(&shown(&forest, rule, true)[1..2], &[0.75]));
    }

    #[test]
    fn a_chain_of_a_million_nodes_needs_no_recursion() {
        let forest = chain(1_000_000);
        for rule in [ValueRule::LeafMean, ValueRule::ChildMean, ValueRule::Max] {
            assert!(shown(&forest, rule, true).iter().all(|&value| value == 1.0));
        }
    }
}
