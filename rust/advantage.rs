//! Rewards become advantages: a forest is scored by the estimator of a name.

use crate::error::{Error, Fault, Result};
use crate::estimators::{Estimator, NodeColumns, Rule};
use crate::explain::Trace;
use crate::forest::{Forest, Stamp, check_length};
use crate::options::{OptionValue, Options, resolve};
use crate::value::{LeafSums, ValueRule, anchors, leaf_sums, values};

/// What scoring a forest gives, per node; NaN where `num_leaves` is 0.
#[derive(Debug, Clone)]
pub struct Scores {
    pub estimator: String,
    pub options: Options,
    pub num_leaves: Vec<u32>,
    pub value: Vec<f64>,
    /// Node-level, or the mean over the scored leaves below; 0 on a root.
    pub advantage: Vec<f64>,
    /// Under a leaf-level estimator: A(l) of each scored leaf, NaN elsewhere. Else none.
    pub leaf_advantage: Option<Vec<f64>>,
    /// What computed them; none where they were given.
    pub(crate) computed_by: Option<&'static Estimator>,
    /// What the forest held.
    stamp: Stamp,
}

impl Scores {
    /// Refuses a forest that is not the one they were computed of, or that has changed since.
    pub fn check_of(&self, forest: &Forest) -> Result<()> {
        if self.stamp == forest.stamp() { Ok(()) } else { Err(Error::ForeignScores) }
    }

    /// A(l) or A(n) of a node on the way to a scored leaf.
    pub fn advantage_of(&self, node: usize, leaf: usize) -> f64 {
        self.leaf_advantage.as_ref().map_or_else(|| self.advantage[node], |of_leaf| of_leaf[leaf])
    }
}

/// Scores a whole forest; a group is the trees of one prompt.
pub fn score(forest: &Forest, estimator: &str, options: &[(String, OptionValue)]) -> Result<Scores> {
    score_traced(forest, Estimator::named(estimator)?, options, &mut Trace::default())
}

/// Scores a forest, and notes the terms of the nodes that `trace` watches.
pub(crate) fn score_traced(
    forest: &Forest,
    estimator: &'static Estimator,
    given: &[(String, OptionValue)],
    trace: &mut Trace,
) -> Result<Scores> {
    let LeafSums { sum, num_leaves } = leaf_sums(&forest.parent, &forest.reward);
    let (options, columns, leaf_advantage) = match estimator.rule {
        Rule::Leaf(read) => {
            let (rule, options) = resolve(estimator.name, given, read)?;
            let leaf = rule(forest, trace)?;
            (options, shown(forest, sum, &num_leaves, &leaf)?, Some(leaf))
        }
        Rule::Node(read) => {
            let (rule, options) = resolve(estimator.name, given, read)?;
            (options, rule(forest, sum, &num_leaves, trace)?, None)
        }
    };
    let NodeColumns { value, advantage } = columns;
    let (estimator, computed_by) = (estimator.name.to_owned(), Some(estimator));
    let stamp = forest.stamp();
    Scores { estimator, options, num_leaves, value, advantage, leaf_advantage, computed_by, stamp }.finished(forest)
}

/// Scores that somebody else computed: `advantage` has an entry a node.
///
/// Leaf-level ones are read at scored leaves, others at nodes that have one below; the rest does not count. Values are
/// leaf-means.
pub fn given(forest: &Forest, advantage: &[f64], leaf_level: bool, estimator: &str) -> Result<Scores> {
    check_length("advantage", advantage.len(), forest.num_nodes())?;
    let LeafSums { sum, num_leaves } = leaf_sums(&forest.parent, &forest.reward);
    let counts = |node: &usize| if leaf_level { !forest.reward[*node].is_nan() } else { num_leaves[*node] > 0 };
    if let Some(node) = (0..forest.num_nodes()).find(|node| counts(node) && !advantage[*node].is_finite()) {
        return Err(forest.fault(node, Fault::AdvantageNotFinite(advantage[node])));
    }
    let counted = |node| if counts(&node) { advantage[node] } else { f64::NAN };
    let counted: Vec<f64> = (0..forest.num_nodes()).map(counted).collect();
    let (columns, leaf_advantage) = if leaf_level {
        (shown(forest, sum, &num_leaves, &counted)?, Some(counted))
    } else {
        (NodeColumns { value: leaf_means(forest, sum, &num_leaves)?, advantage: counted }, None)
    };
    let NodeColumns { value, advantage } = columns;
    let (estimator, options, computed_by, stamp) = (estimator.to_owned(), vec![], None, forest.stamp());
    Scores { estimator, options, num_leaves, value, advantage, leaf_advantage, computed_by, stamp }.finished(forest)
}

impl Scores {
    /// A root gets 0, or none without a scored leaf; whatever has a scored leaf below is finite.
    fn finished(mut self, forest: &Forest) -> Result<Self> {
        for &root in &forest.root {
            self.advantage[root as usize] = if self.num_leaves[root as usize] == 0 { f64::NAN } else { 0.0 };
        }
        let columns = || self.num_leaves.iter().zip(&self.value).zip(&self.advantage);
        let wrong = |((&num_leaves, value), advantage): ((&u32, &f64), &f64)| {
            num_leaves > 0 && !(value.is_finite() & advantage.is_finite())
        };
        if !columns().fold(false, |any, column| any | wrong(column)) {
            return Ok(self);
        }
        let node = columns().position(wrong).unwrap_or(0);
        Err(forest.fault(node, Fault::NotFinite))
    }
}

fn leaf_means(forest: &Forest, sum: Vec<f64>, num_leaves: &[u32]) -> Result<Vec<f64>> {
    values(forest, sum, num_leaves, ValueRule::LeafMean, &anchors(forest, false))
}

/// Leaf-level advantages as they are shown: leaf-mean values, and the mean A(l) below each node.
fn shown(forest: &Forest, sum: Vec<f64>, num_leaves: &[u32], leaf: &[f64]) -> Result<NodeColumns> {
    let below = leaf_sums(&forest.parent, leaf).sum;
    let mean = |(sum, &num): (f64, &u32)| if num == 0 { f64::NAN } else { sum / f64::from(num) };
    let advantage = below.into_iter().zip(num_leaves).map(mean).collect();
    Ok(NodeColumns { value: leaf_means(forest, sum, num_leaves)?, advantage })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimators::ESTIMATORS;
    use crate::forest::NO_PARENT;
    use crate::forest::tests::{chain, planted, published};

    fn text(name: &str, value: &str) -> (String, OptionValue) {
        (name.to_owned(), OptionValue::Text(value.to_owned()))
    }

    /// Advantages of the published trees, with eps 0.
    fn advantages(two: bool, estimator: &str, options: &[(&str, &str)]) -> Vec<f64> {
        let mut given = vec![text("eps", "0")];
        given.extend(options.iter().map(|(name, value)| text(name, value)));
        score(&published(two), estimator, &given).unwrap().advantage
    }

    fn close(actual: &[f64], expected: &[f64]) -> bool {
        actual.len() == expected.len() && actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn published_leaf_level_advantages() {
        let grpo = advantages(false, "grpo", &[]);
        assert!(close(&grpo[3..6], &[-0.912871, 0.912871, -0.912871]));
        let none = advantages(false, "grpo", &[("scale", "none")]);
        assert!(close(&none, &[0.0, 0.0, 1.0 / 6.0, -0.5, 0.5, -0.5, 1.0 / 6.0, 0.5, 0.5, -0.5]));
        let two = advantages(true, "tree-grpo", &[]);
        assert!(close(&two[9..], &[-1.848285, 0.0, -1.642521, 1.642521]));
        let eps = advantages(true, "tree-grpo", &[("eps", "1e-6")]);
        assert!(close(&eps[9..], &[-1.848282, 0.0, -1.642518, 1.642518]));
    }

    #[test]
    fn published_parent_advantages() {
        let below = [0.5, -0.5, 0.0, 0.333333, 0.333333, -0.666667];
        let leaf_mean = advantages(false, "parent", &[]);
        assert!(close(&leaf_mean, &[&[0.0, 0.0, 0.166667, -0.5], &below[..]].concat()));
        let child_mean = advantages(false, "parent", &[("value", "child-mean")]);
        assert!(close(&child_mean, &[&[0.0, 0.111111, 0.277778, -0.388889], &below[..]].concat()));
        let shared = advantages(true, "parent", &[]);
        assert!(close(&shared[..4], &[0.0, 0.0, 0.166667, -0.5]) && close(&shared[10..], &[0.0, -0.5, 0.5]));
    }

    #[test]
    fn published_sibling_advantages() {
        let top = |options: &[(&str, &str)]| advantages(false, "sibling", options)[1..4].to_vec();
        assert!(close(&top(&[("center", "loo")]), &[0.166667, 0.416667, -0.583333]));
        assert!(close(&top(&[("scale", "std"), ("ddof", "0")]), &[0.392232, 0.980581, -1.372813]));
        assert!(close(&top(&[("scale", "std")]), &[0.320256, 0.800641, -1.120897]));
        assert!(close(&top(&[("scale", "bernoulli")]), &[0.227921, 0.569803, -0.797724]));
        let shared = advantages(true, "sibling", &[]);
        assert!(close(&shared[1..4], &[0.066667, 0.233333, -0.433333]));
        assert!(close(&shared[11..], &[-0.433333, 0.566667]));
    }

    #[test]
    fn a_node_without_scored_leaves_has_no_advantage() {
        let nan = f64::NAN;
        let forest = planted(&[0, 0], &[NO_PARENT, 0, 0, 2, NO_PARENT], &[0, 0, 0, 0, 1], &[nan, 1.0, nan, nan, nan]);
        let forest = forest.unwrap();
        for estimator in ESTIMATORS {
            let advantage = score(&forest, estimator.name, &[]).unwrap().advantage;
            assert_eq!(advantage[..2], [0.0, 0.0]);
            assert!(advantage[2..].iter().all(|advantage| advantage.is_nan()));
        }
    }

    #[test]
    fn a_chain_of_a_million_nodes_needs_no_recursion() {
        let forest = chain(1_000_000);
        for estimator in ESTIMATORS {
            assert!(score(&forest, estimator.name, &[]).unwrap().advantage.iter().all(|&advantage| advantage == 0.0));
        }
    }

    #[test]
    fn what_overflows_is_refused_and_named() {
        let nan = f64::NAN;
        let forest = planted(&[0], &[NO_PARENT, 0, 0], &[0; 3], &[nan, 1e308, -1e308]).unwrap();
        assert_eq!(score(&forest, "grpo", &[]).unwrap_err(), forest.fault(1, Fault::NotFinite));
    }

    #[test]
    fn given_advantages_are_taken_where_they_count() {
        let forest = published(false);
        let column: Vec<f64> = (0..10).map(f64::from).collect();
        let node_level = given(&forest, &column, false, "mine").unwrap();
        assert_eq!((node_level.advantage[0], node_level.advantage[6]), (0.0, 6.0));
        let leaf_level = given(&forest, &column, true, "mine").unwrap();
        assert_eq!((leaf_level.advantage[6], leaf_level.advantage_of(6, 9)), (8.0, 9.0));
        assert!(matches!(given(&forest, &[0.0], true, "mine"), Err(Error::Length { .. })));
        let fault = Fault::AdvantageNotFinite(f64::INFINITY);
        assert_eq!(given(&forest, &[f64::INFINITY; 10], true, "mine").unwrap_err(), forest.fault(3, fault));
    }
}
