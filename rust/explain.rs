//! A node's advantage -> the comparisons that it is the sum of, noted while the forest is scored.

use crate::advantage::Scores;
use crate::error::{Error, Result};
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Measure, mean_of, std_of};
use crate::value::{LeafSums, leaf_sums};

/// What an estimator compares a node's value with, and how much that counts: it may do so several times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    pub name: &'static str,
    /// Whose values these are: `prompt`, `tree`, `siblings`, ...
    pub group: &'static str,
    pub weight: f64,
}

/// Of the values of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub size: u32,
    pub mean: f64,
    /// By the estimator's ddof; NaN where the group is too small to have one.
    pub std: f64,
}

/// One comparison of one node (of a leaf, where the estimator is leaf-level).
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Which term of the scores, and whether what is compared are leaves.
    pub term: u32,
    pub of_leaf: bool,
    pub node: u32,
    pub comparison: Comparison,
    pub group: Figures,
    pub raw: f64,
    pub measure: Measure,
    /// What the measure made of the raw value.
    pub measured: f64,
}

impl Part {
    /// What it adds to the advantage.
    pub fn contribution(&self) -> f64 {
        self.comparison.weight * self.measured
    }

    fn times(mut self, weight: f64) -> Self {
        self.comparison.weight *= weight;
        self
    }
}

/// Notes the comparisons of some nodes while a forest is scored; costs a test a group where it is off.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Per node whether it is watched; empty where the trace is off.
    watched: Vec<bool>,
    parts: Vec<Part>,
}

impl Trace {
    /// Whether anything is noted.
    pub fn is_on(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Whether what is said of a node is noted.
    pub fn watches(&self, node: u32) -> bool {
        self.is_on() && self.watched[node as usize]
    }

    /// Notes a group and the measure of its `raw` values.
    pub fn note(&mut self, comparison: Comparison, group: &[u32], raw: &[f64], ddof: u32, measure: Measure) {
        if !self.is_on() {
            return;
        }
        let group_mean = mean_of(raw);
        let figures = Figures { size: group.len() as u32, mean: group_mean, std: std_of(raw, group_mean, ddof) };
        for (&node, &raw) in group.iter().zip(raw) {
            self.note_one(comparison, node, raw, figures, measure);
        }
    }

    /// Notes one node of a group that the caller knows the figures of.
    pub fn note_one(&mut self, comparison: Comparison, node: u32, raw: f64, group: Figures, measure: Measure) {
        if self.watches(node) {
            let measured = measure.of(raw);
            self.parts.push(Part { term: 0, of_leaf: false, node, comparison, group, raw, measure, measured });
        }
    }
}

/// How one node came by its advantage.
///
/// Leaf-level terms have parts for each scored leaf at or below the node, whose advantages it shows the mean of; those of
/// node-level terms are the node's own. A root has none: its advantage is 0 by definition.
#[derive(Debug, Clone)]
pub struct Explanation {
    pub value: f64,
    pub advantage: f64,
    pub leaf_level: bool,
    pub parts: Vec<Part>,
}

/// Scores the forest once more, as it was scored, and notes what made the advantage of `node`.
pub fn explain(forest: &Forest, scores: &Scores, node: u32) -> Result<Explanation> {
    forest.check_node(node)?;
    scores.check_of(forest)?;
    if scores.terms.is_empty() {
        return Err(Error::GivenScores);
    }
    let LeafSums { sum, num_leaves } = leaf_sums(&forest.parent, &forest.reward);
    let trace = |leaf_level| Trace { watched: watched(forest, node, leaf_level), parts: vec![] };
    let mut parts: Vec<Part> = vec![];
    for (term, number) in scores.terms.iter().zip(0..) {
        let (mut below, mut own) = (trace(true), trace(false));
        term.columns(forest, &sum, &num_leaves, &mut below, &mut own)?;
        for (noted, of_leaf) in [(below.parts, true), (own.parts, false)] {
            parts.extend(noted.into_iter().map(|part| Part { term: number, of_leaf, ..part.times(term.weight) }));
        }
    }
    parts.sort_by_key(|part| (!part.of_leaf, part.node));
    let (value, advantage) = (scores.value[node as usize], scores.advantage[node as usize]);
    Ok(Explanation { value, advantage, leaf_level: scores.leaf_advantage.is_some(), parts })
}

fn watched(forest: &Forest, node: u32, leaf_level: bool) -> Vec<bool> {
    let mut below = vec![false; forest.num_nodes()];
    if forest.parent[node as usize] == NO_PARENT {
        return below;
    }
    below[node as usize] = true;
    if leaf_level {
        for place in node as usize + 1..forest.num_nodes() {
            below[place] = below.get(forest.parent[place] as usize).copied().unwrap_or(false);
        }
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::score;
    use crate::forest::tests::published;
    use crate::options::OptionValue;

    #[test]
    fn the_terms_of_tree_grpo_are_those_of_group_and_tree() {
        let forest = published(true);
        let options = [("intra".to_owned(), OptionValue::Number(2.0)), ("eps".to_owned(), OptionValue::Integer(0))];
        let scores = score(&forest, "tree-grpo", &options).unwrap();
        let told = explain(&forest, &scores, 11).unwrap(); // D, reward 0
        let terms: Vec<_> = told.parts.iter().map(|part| (part.comparison.name, part.group.size, part.raw)).collect();
        assert_eq!(terms, [("inter", 8, 0.0), ("intra", 2, 0.0)]);
        assert_eq!(told.parts.iter().map(Part::contribution).sum::<f64>(), told.advantage);
        assert!((told.parts[0].group.std - 0.534522).abs() < 1e-6 && told.parts[1].group.mean == 0.5);
    }

    #[test]
    fn an_inner_node_shows_the_leaves_that_it_averages() {
        let forest = published(false);
        let scores = score(&forest, "grpo", &[]).unwrap();
        let told = explain(&forest, &scores, 6).unwrap();
        assert_eq!(told.parts.iter().map(|part| part.node).collect::<Vec<_>>(), [7, 8, 9]);
        assert!(explain(&forest, &scores, 0).unwrap().parts.is_empty());
    }

    #[test]
    fn the_baseline_of_parent_is_the_parents_value() {
        let forest = published(false);
        let scores = score(&forest, "parent", &[]).unwrap();
        let told = explain(&forest, &scores, 2).unwrap();
        let [part] = &told.parts[..] else { unreachable!() };
        assert_eq!((part.raw, part.measure.baseline, part.group.size), (2.0 / 3.0, 0.5, 3));
        assert_eq!(part.contribution(), told.advantage);
    }
}
