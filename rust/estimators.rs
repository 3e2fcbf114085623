//! Every estimator, one item a file: its name, formula, options, level and function stand together.
//!
//! A new one is a file with an [`Estimator`] and its line in [`ESTIMATORS`]; nothing else knows estimators by name.

mod ancestor;
mod anchor;
mod causal;
mod depth;
mod global_local;
mod grpo;
mod parent;
mod redistribute;
mod reward_scale;
mod sibling;
mod state_loo;
mod tree_grpo;

use crate::error::Result;
use crate::explain::Trace;
use crate::forest::Forest;
use crate::options::{self, Described, Reader};
use crate::value::{ValueRule, anchors, sibling_groups, values};

/// All estimators, in the order of the documentation.
pub static ESTIMATORS: &[&Estimator] = &[
    &grpo::GRPO,
    &tree_grpo::TREE_GRPO,
    &ancestor::ANCESTOR,
    &redistribute::REDISTRIBUTE,
    &parent::PARENT,
    &sibling::SIBLING,
    &global_local::GLOBAL_LOCAL,
    &depth::DEPTH,
    &anchor::ANCHOR,
    &causal::CAUSAL,
    &state_loo::STATE_LOO,
];

/// How rewards become advantages.
#[derive(Debug)]
pub struct Estimator {
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// One plain line: N is the normaliser, R a reward, V a value, L(n) the scored leaves below n.
    pub formula: &'static str,
    pub rule: Rule,
    /// Whether it gives each node a weight of its own, in place of |L|^p.
    pub weighs: bool,
    /// Whether token ids matter to it, not the shape of trees and their rewards alone.
    pub reads_tokens: bool,
}

/// What an estimator computes. Each reads its options and returns the function that they make.
#[derive(Debug)]
pub enum Rule {
    /// A(l): a path's nodes take their leaf's advantage.
    Leaf(fn(&mut Reader) -> Result<LeafRule>),
    /// A(n), with the values that it compares.
    Node(fn(&mut Reader) -> Result<NodeRule>),
    /// A(l) + a(n).
    Both(fn(&mut Reader) -> Result<(LeafRule, NodeRule)>),
}

/// Forest -> A(l) at scored leaves, NaN elsewhere.
pub type LeafRule = Box<dyn Fn(&Forest, &mut Trace) -> Result<Vec<f64>>>;
/// Forest, reward sums and numbers of scored leaves a node -> values and A(n); what a root has does not count.
pub type NodeRule = Box<dyn Fn(&Forest, Vec<f64>, &[u32], &mut Trace) -> Result<NodeColumns>>;

/// What a node-level estimator gives each node.
pub struct NodeColumns {
    pub value: Vec<f64>,
    pub advantage: Vec<f64>,
    /// In place of |L|^p; of an estimator that [weighs](Estimator::weighs) and of no other.
    pub weight: Option<Vec<f64>>,
}

impl Estimator {
    /// The estimator of this name.
    pub fn named(name: &str) -> Result<&'static Self> {
        options::find("estimator", ESTIMATORS, name, |estimator| estimator.name)
    }

    /// `leaf`, `node` or `both`.
    pub fn level(&self) -> &'static str {
        match self.rule {
            Rule::Leaf(_) => "leaf",
            Rule::Node(_) => "node",
            Rule::Both(_) => "both",
        }
    }

    /// All its options with their defaults and limits.
    pub fn options(&self) -> Result<Vec<Described>> {
        match self.rule {
            Rule::Leaf(read) => options::describe(read),
            Rule::Node(read) => options::describe(read),
            Rule::Both(read) => options::describe(read),
        }
    }

    /// Checks options; returns all of them, as they are or by default.
    pub fn resolve(&self, given: &[(String, options::OptionValue)]) -> Result<options::Options> {
        match self.rule {
            Rule::Leaf(read) => options::resolve(self.name, given, read).map(|(_, options)| options),
            Rule::Node(read) => options::resolve(self.name, given, read).map(|(_, options)| options),
            Rule::Both(read) => options::resolve(self.name, given, read).map(|(_, options)| options),
        }
    }
}

/// The options of estimators that compare values: whether a prompt's roots are one, and how values travel up.
#[derive(Debug, Clone, Copy)]
struct Valuation {
    shared_roots: bool,
    value: ValueRule,
}

/// Values, and the nodes that have one, grouped with their siblings.
struct Valued {
    value: Vec<f64>,
    anchors: Vec<u32>,
}

impl Valuation {
    fn read(options: &mut Reader) -> Result<Self> {
        let shared_roots = options.choice("roots", "shared", &[("shared", true), ("tree", false)])?;
        Ok(Self { shared_roots, value: ValueRule::read(options)? })
    }

    fn of(self, forest: &Forest, sum: Vec<f64>, num_leaves: &[u32]) -> Result<Valued> {
        let anchors = anchors(forest, self.shared_roots);
        let value = values(forest, sum, num_leaves, self.value, &anchors)?;
        Ok(Valued { value, anchors })
    }
}

impl Valued {
    fn siblings(&self, forest: &Forest, num_leaves: &[u32]) -> crate::normalise::Groups {
        sibling_groups(forest, num_leaves, &self.anchors)
    }
}

/// The mean reward below each node, NaN where no scored leaf is.
fn leaf_means(forest: &Forest, sum: Vec<f64>, num_leaves: &[u32]) -> Result<Vec<f64>> {
    values(forest, sum, num_leaves, ValueRule::LeafMean, &anchors(forest, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_estimator_resolves_to_its_defaults() {
        for estimator in ESTIMATORS {
            let resolved = estimator.resolve(&[]).unwrap();
            assert_eq!(estimator.resolve(&resolved).unwrap(), resolved);
            let described = estimator.options().unwrap();
            let always = described.iter().filter(|option| option.beside.is_none());
            let defaults: Vec<_> = always.map(|option| (option.name.to_owned(), option.default.clone())).collect();
            assert_eq!(defaults, resolved);
        }
    }

    #[test]
    fn names_differ_and_a_wrong_one_is_shown_the_nearest() {
        let names: std::collections::HashSet<_> = ESTIMATORS.iter().map(|estimator| estimator.name).collect();
        assert_eq!(names.len(), ESTIMATORS.len());
        let message = Estimator::named("tre-grpo").err().unwrap().to_string();
        assert!(message.contains("did you mean 'tree-grpo'?"), "{message}");
    }
}
