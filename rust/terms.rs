//! Terms of a sum of estimators: what is asked for, and the columns that it gives.

use crate::error::{Error, Result};
use crate::estimators::{Estimator, NodeColumns, Rule};
use crate::explain::Trace;
use crate::forest::Forest;
use crate::options::{OptionValue, Options, find, resolve};

/// An estimator in a sum: how much it counts, for which tokens, and its options.
#[derive(Debug, Clone)]
pub struct Term {
    pub estimator: &'static Estimator,
    pub weight: f64,
    /// None: for all of them.
    pub mask: Option<Mask>,
    pub options: Options,
}

/// The sampled tokens that a term counts for; the KL, the entropy and the denominator know no mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Those of tool calls.
    ToolCalls,
}

impl Mask {
    /// The mask of this name.
    pub fn named(name: &str) -> Result<Self> {
        find("mask", &[Self::ToolCalls], name, |mask| mask.name())
    }

    /// As settings have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ToolCalls => "tool-calls",
        }
    }
}

/// What a term gives each node, or the sum of several.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns {
    /// V(n), of the first term that compares values.
    pub value: Option<Vec<f64>>,
    /// A(l) at scored leaves, NaN elsewhere.
    pub leaf: Option<Vec<f64>>,
    /// a(n).
    pub node: Option<Vec<f64>>,
    pub weight: Option<Vec<f64>>,
}

impl Columns {
    /// Adds `weight` times another term's advantages.
    pub fn add(&mut self, weight: f64, other: Self) {
        add_column(&mut self.leaf, weight, other.leaf);
        add_column(&mut self.node, weight, other.node);
        self.value = self.value.take().or(other.value);
        self.weight = self.weight.take().or(other.weight);
    }
}

fn add_column(total: &mut Option<Vec<f64>>, weight: f64, column: Option<Vec<f64>>) {
    let Some(mut column) = column else { return };
    if weight != 1.0 {
        column.iter_mut().for_each(|x| *x *= weight);
    }
    match total {
        Some(total) => total.iter_mut().zip(column).for_each(|(total, x)| *total += x),
        None => *total = Some(column),
    }
}

impl Term {
    /// The estimator of a name, by itself.
    pub fn alone(estimator: &str, options: &[(String, OptionValue)]) -> Result<Self> {
        Ok(Self { estimator: Estimator::named(estimator)?, weight: 1.0, mask: None, options: options.to_vec() })
    }

    /// `grpo`, `0.5 parent`, `parent on tool-calls`.
    pub fn label(&self) -> String {
        let weight = if self.weight == 1.0 { String::new() } else { format!("{} ", self.weight) };
        let mask = self.mask.map_or_else(String::new, |mask| format!(" on {}", mask.name()));
        format!("{weight}{}{mask}", self.estimator.name)
    }

    /// What the estimator makes of a forest; `below` notes what it says of leaves, `own` what of nodes.
    pub(crate) fn columns(
        &self,
        forest: &Forest,
        sum: &[f64],
        num_leaves: &[u32],
        below: &mut Trace,
        own: &mut Trace,
    ) -> Result<Columns> {
        let (name, given) = (self.estimator.name, &self.options);
        let by_node = |NodeColumns { value, advantage, weight }: NodeColumns| Columns {
            value: Some(value),
            node: Some(advantage),
            weight,
            leaf: None,
        };
        match self.estimator.rule {
            Rule::Leaf(read) => {
                let leaf = Some(resolve(name, given, read)?.0(forest, below)?);
                Ok(Columns { leaf, ..Columns::default() })
            }
            Rule::Node(read) => resolve(name, given, read)?.0(forest, sum.to_vec(), num_leaves, own).map(by_node),
            Rule::Both(read) => {
                let (leaf_rule, node_rule) = resolve(name, given, read)?.0;
                let leaf = Some(leaf_rule(forest, below)?);
                node_rule(forest, sum.to_vec(), num_leaves, own).map(|columns| Columns { leaf, ..by_node(columns) })
            }
        }
    }
}

/// The terms of a sum with all their options. Refuses a sum without terms, weights without meaning, and an estimator
/// that weighs turns itself beside another term.
pub fn resolved(terms: &[Term]) -> Result<Vec<Term>> {
    if terms.is_empty() {
        return Err(Error::NoTerms);
    }
    if let Some(term) = terms.iter().find(|term| term.estimator.weighs && terms.len() > 1) {
        return Err(Error::WeighsAlone(term.estimator.name));
    }
    let resolved = |term: &Term| {
        if !(term.weight.is_finite() && term.weight >= 0.0) {
            let (got, expected) = (term.weight.to_string(), "a finite number, 0 or more".to_owned());
            return Err(Error::OptionValue { name: "weight".to_owned(), got, expected });
        }
        Ok(Term { options: term.estimator.resolve(&term.options)?, ..term.clone() })
    };
    terms.iter().map(resolved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::{score, score_terms};
    use crate::forest::tests::published;

    fn term(estimator: &str, weight: f64) -> Term {
        let none = ("scale".to_owned(), OptionValue::Text("none".to_owned()));
        Term { weight, ..Term::alone(estimator, &[none]).unwrap() }
    }

    #[test]
    fn a_sum_adds_leaf_level_to_leaf_level_and_node_level_to_node_level() {
        let forest = published(false);
        let scores = score_terms(&forest, &[term("grpo", 1.0), term("parent", 0.5), term("parent", 0.5)]).unwrap();
        assert_eq!(scores.label, "grpo + 0.5 parent + 0.5 parent");
        let parent = score(&forest, "parent", &[]).unwrap();
        assert_eq!(scores.node_advantage, parent.node_advantage);
        assert_eq!(scores.leaf_advantage.as_ref().unwrap()[7..], [0.5, 0.5, -0.5]);
        assert_eq!((scores.advantage[3], scores.advantage[0]), (-1.0, 0.0));
        assert_eq!(scores.advantage_of(3, 9), -1.0);
    }

    #[test]
    fn a_masked_term_counts_for_the_tokens_of_tool_calls_alone() {
        let mut forest = published(false);
        forest.knows_tool_calls = true;
        let masked = Term { mask: Some(Mask::ToolCalls), ..term("parent", 0.5) };
        let scores = score_terms(&forest, &[term("grpo", 1.0), masked.clone()]).unwrap();
        assert_eq!(scores.label, "grpo + 0.5 parent on tool-calls");
        let grpo = score_terms(&forest, &[term("grpo", 1.0)]).unwrap();
        assert_eq!((scores.advantage_of(3, 3), scores.unmasked_of(3, 3)), (-0.75, grpo.advantage_of(3, 3)));
        assert_eq!(score_terms(&forest, std::slice::from_ref(&masked)).unwrap().unmasked_of(3, 3), 0.0);
        assert_eq!(score_terms(&published(false), &[masked]).unwrap_err(), Error::NoToolCalls);
        assert!(Mask::named("tool-call").unwrap_err().to_string().contains("did you mean 'tool-calls'"));
    }

    #[test]
    fn sums_without_meaning_are_refused() {
        let forest = published(false);
        assert_eq!(score_terms(&forest, &[]).unwrap_err(), Error::NoTerms);
        for weight in [f64::NAN, -1.0] {
            assert!(matches!(score_terms(&forest, &[term("grpo", weight)]), Err(Error::OptionValue { .. })));
        }
    }
}
