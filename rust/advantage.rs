//! Rewards become advantages: a forest is scored by an estimator, or by a sum of several.

use crate::error::{Error, Fault, Result};
use crate::explain::Trace;
use crate::forest::{Forest, Stamp, check_length};
use crate::options::OptionValue;
use crate::terms::{Columns, Term, resolved};
use crate::value::{LeafSums, ValueRule, anchors, leaf_sums, values};

/// What scoring a forest gives, per node; NaN where `num_leaves` is 0.
///
/// The advantage of a node on the way to a leaf is A(l) + a(n), the sum of the leaf-level and of the node-level terms.
/// That of all terms is what the tokens of tool calls get; where terms are masked, the other tokens get less of them.
#[derive(Debug, Clone)]
pub struct Scores {
    /// What computed them; none where they were given.
    pub terms: Vec<Term>,
    /// What a person calls them: an estimator's name, a sum of names, or that of whoever gave them.
    pub label: String,
    pub num_leaves: Vec<u32>,
    pub value: Vec<f64>,
    /// What is shown: the mean of A(l) over the scored leaves below, plus a(n); 0 on a root.
    pub advantage: Vec<f64>,
    /// A(l) of each scored leaf, NaN elsewhere; none without a leaf-level term.
    pub leaf_advantage: Option<Vec<f64>>,
    /// a(n), 0 on a root; none without a node-level term.
    pub node_advantage: Option<Vec<f64>>,
    /// What each node counts in place of |L|^p, where an estimator says so; |L| on a root, which is never trained.
    pub weight: Option<Vec<f64>>,
    /// Of the terms without a mask, where some have one.
    pub unmasked: Option<Advantages>,
    /// What the forest held.
    stamp: Stamp,
}

/// Advantages of some terms: what is shown, A(l) and a(n), as in [`Scores`].
#[derive(Debug, Clone)]
pub struct Advantages {
    pub shown: Vec<f64>,
    pub leaf: Option<Vec<f64>>,
    pub node: Option<Vec<f64>>,
}

/// Columns of advantages of leaves and of nodes, as far as there are any.
pub type Levels<'a> = (Option<&'a [f64]>, Option<&'a [f64]>);

impl Scores {
    /// Refuses a forest that is not the one they were computed of, or that has changed since.
    pub fn check_of(&self, forest: &Forest) -> Result<()> {
        if self.stamp == forest.stamp() { Ok(()) } else { Err(Error::ForeignScores) }
    }

    /// A(l) + a(n) of a node on the way to a scored leaf: what its tool calls get.
    pub fn advantage_of(&self, node: usize, leaf: usize) -> f64 {
        on_the_way(self.levels(), node, leaf)
    }

    /// The same without masked terms: what the rest of its turn gets.
    pub fn unmasked_of(&self, node: usize, leaf: usize) -> f64 {
        on_the_way(self.unmasked_levels(), node, leaf)
    }

    /// Advantages of all terms.
    pub fn levels(&self) -> Levels<'_> {
        (self.leaf_advantage.as_deref(), self.node_advantage.as_deref())
    }

    /// Those of terms without a mask.
    pub fn unmasked_levels(&self) -> Levels<'_> {
        self.unmasked.as_ref().map_or_else(|| self.levels(), |some| (some.leaf.as_deref(), some.node.as_deref()))
    }

    /// What a node counts for each of its scored leaves: |L|^(p − 1), or its own weight over |L|.
    pub fn share(&self, node: usize, prefix_weight: f64) -> f64 {
        let num_leaves = f64::from(self.num_leaves[node]);
        self.weight.as_ref().map_or_else(|| num_leaves.powf(prefix_weight - 1.0), |weight| weight[node] / num_leaves)
    }
}

fn on_the_way((leaf_level, node_level): Levels, node: usize, leaf: usize) -> f64 {
    leaf_level.map_or(0.0, |column| column[leaf]) + node_level.map_or(0.0, |column| column[node])
}

/// Scores a whole forest by one estimator; a group is the trees of one prompt.
pub fn score(forest: &Forest, estimator: &str, options: &[(String, OptionValue)]) -> Result<Scores> {
    score_terms(forest, &[Term::alone(estimator, options)?])
}

/// Scores a whole forest by the sum of some terms.
pub fn score_terms(forest: &Forest, terms: &[Term]) -> Result<Scores> {
    let terms = resolved(terms)?;
    let LeafSums { sum, num_leaves } = leaf_sums(&forest.parent, &forest.reward);
    let mut unmasked = terms.iter().any(|term| term.mask.is_some()).then(Columns::default);
    if unmasked.is_some() && !forest.knows_tool_calls {
        return Err(Error::NoToolCalls);
    }
    let mut total = Columns::default();
    for term in &terms {
        let (mut below, mut own) = (Trace::default(), Trace::default());
        let columns = term.columns(forest, &sum, &num_leaves, &mut below, &mut own)?;
        if let (Some(unmasked), None) = (&mut unmasked, term.mask) {
            unmasked.add(term.weight, columns.clone());
        }
        total.add(term.weight, columns);
    }
    let label = terms.iter().map(Term::label).collect::<Vec<_>>().join(" + ");
    total.finished(forest, unmasked, LeafSums { sum, num_leaves }, terms, label)
}

/// Scores that somebody else computed: columns with an entry a node.
///
/// Leaf-level ones are read at scored leaves, the others at nodes that have one below; the rest does not count. Values
/// are leaf-means. `unmasked`: what tokens that are part of no tool call get, where that is something else.
pub fn given(
    forest: &Forest,
    levels: Levels,
    unmasked: Option<Levels>,
    weight: Option<&[f64]>,
    label: &str,
) -> Result<Scores> {
    let LeafSums { sum, num_leaves } = leaf_sums(&forest.parent, &forest.reward);
    let is_scored = |node: usize| !forest.reward[node].is_nan();
    let has_leaf = |node: usize| num_leaves[node] > 0;
    let advantage = |advantage: f64| (!advantage.is_finite()).then_some(Fault::AdvantageNotFinite(advantage));
    let weighing = |weight: f64| (!(weight.is_finite() && weight >= 0.0)).then_some(Fault::NoWeight(weight));
    let of_levels = |(leaf, node): Levels| -> Result<Columns> {
        let leaf = leaf.map(|column| counted(forest, "advantage", column, is_scored, advantage)).transpose()?;
        let node = node.map(|column| counted(forest, "advantage", column, has_leaf, advantage)).transpose()?;
        Ok(Columns { leaf, node, ..Columns::default() })
    };
    if unmasked.is_some() && !forest.knows_tool_calls {
        return Err(Error::NoToolCalls);
    }
    let (total, unmasked) = (of_levels(levels)?, unmasked.map(of_levels).transpose()?);
    let weight = weight.map(|column| counted(forest, "weight", column, has_leaf, weighing)).transpose()?;
    let sums = LeafSums { sum, num_leaves: num_leaves.clone() };
    Columns { weight, ..total }.finished(forest, unmasked, sums, vec![], label.to_owned())
}

/// A given column where it counts, NaN elsewhere.
fn counted(
    forest: &Forest,
    name: &'static str,
    column: &[f64],
    counts: impl Fn(usize) -> bool,
    fault: impl Fn(f64) -> Option<Fault>,
) -> Result<Vec<f64>> {
    check_length(name, column.len(), forest.num_nodes())?;
    let checked = |(node, &x): (usize, &f64)| match fault(x) {
        _ if !counts(node) => Ok(f64::NAN),
        Some(fault) => Err(forest.fault(node, fault)),
        None => Ok(x),
    };
    column.iter().enumerate().map(checked).collect()
}

impl Columns {
    /// Scores made of these sums. A root gets 0, or none without a scored leaf; whatever has one below is finite.
    fn finished(
        mut self,
        forest: &Forest,
        unmasked: Option<Self>,
        LeafSums { sum, num_leaves }: LeafSums,
        terms: Vec<Term>,
        label: String,
    ) -> Result<Scores> {
        if let Some(column) = &mut self.weight {
            for &root in &forest.root {
                column[root as usize] = f64::from(num_leaves[root as usize]); // never trained: 1 in each row
            }
        }
        let (value, weight, stamp) = (self.value.take(), self.weight.take(), forest.stamp());
        let value = match value {
            Some(value) => value,
            None => leaf_means(forest, sum, &num_leaves)?,
        };
        let Advantages { shown: advantage, leaf: leaf_advantage, node: node_advantage } =
            self.advantages(forest, &num_leaves);
        check_finite(forest, &num_leaves, &value, &advantage)?;
        let unmasked = unmasked.map(|columns| columns.advantages(forest, &num_leaves));
        if let Some(Advantages { shown, .. }) = &unmasked {
            check_finite(forest, &num_leaves, &value, shown)?;
        }
        Ok(Scores {
            terms,
            label,
            num_leaves,
            value,
            advantage,
            leaf_advantage,
            node_advantage,
            weight,
            unmasked,
            stamp,
        })
    }

    /// Both levels and what is shown of them, with 0 on a root, or none without a scored leaf.
    fn advantages(mut self, forest: &Forest, num_leaves: &[u32]) -> Advantages {
        let at_roots = |column: &mut Vec<f64>| {
            for &root in &forest.root {
                column[root as usize] = if num_leaves[root as usize] == 0 { f64::NAN } else { 0.0 };
            }
        };
        self.node.iter_mut().for_each(at_roots);
        let mut shown = self.shown(forest, num_leaves);
        at_roots(&mut shown);
        Advantages { shown, leaf: self.leaf, node: self.node }
    }

    /// The mean A(l) below each node, plus its own a(n).
    fn shown(&self, forest: &Forest, num_leaves: &[u32]) -> Vec<f64> {
        let below = self.leaf.as_ref().map(|leaf| leaf_sums(&forest.parent, leaf).sum);
        let mean = |node: usize| below.as_ref().map_or(0.0, |sum| sum[node] / f64::from(num_leaves[node]));
        let own = |node: usize| self.node.as_ref().map_or(0.0, |column| column[node]);
        let at = |node: usize| if num_leaves[node] == 0 { f64::NAN } else { mean(node) + own(node) };
        (0..forest.num_nodes()).map(at).collect()
    }
}

fn check_finite(forest: &Forest, num_leaves: &[u32], value: &[f64], advantage: &[f64]) -> Result<()> {
    let columns = || num_leaves.iter().zip(value).zip(advantage);
    let wrong = |((&num_leaves, value), advantage): ((&u32, &f64), &f64)| {
        num_leaves > 0 && !(value.is_finite() & advantage.is_finite())
    };
    if !columns().fold(false, |any, column| any | wrong(column)) {
        return Ok(());
    }
    Err(forest.fault(columns().position(wrong).unwrap_or(0), Fault::NotFinite))
}

fn leaf_means(forest: &Forest, sum: Vec<f64>, num_leaves: &[u32]) -> Result<Vec<f64>> {
    values(forest, sum, num_leaves, ValueRule::LeafMean, &anchors(forest, false))
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
        let forest = planted(&[0, 0], &[NO_PARENT, 0, 0, 2, NO_PARENT], &[0, 0, 0, 0, 1], &[nan, 0.0, nan, nan, nan]);
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
            let expected = if estimator.name == "causal" { 1.0 } else { 0.0 }; // nothing was known before it
            let advantage = score(&forest, estimator.name, &[]).unwrap().advantage;
            assert!(advantage[0] == 0.0 && advantage[1..].iter().all(|&advantage| advantage == expected));
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
        let node_level = given(&forest, (None, Some(&column)), None, None, "mine").unwrap();
        assert_eq!((node_level.advantage[0], node_level.advantage[6]), (0.0, 6.0));
        let leaf_level = given(&forest, (Some(&column), None), None, None, "mine").unwrap();
        assert_eq!((leaf_level.advantage[6], leaf_level.advantage_of(6, 9)), (8.0, 9.0));
        assert!(matches!(given(&forest, (Some(&[0.0]), None), None, None, "mine"), Err(Error::Length { .. })));
        let fault = Fault::AdvantageNotFinite(f64::INFINITY);
        assert_eq!(
            given(&forest, (Some(&[f64::INFINITY; 10]), None), None, None, "mine").unwrap_err(),
            forest.fault(3, fault)
        );
    }
}
