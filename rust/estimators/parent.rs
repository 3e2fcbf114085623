//! `parent`: a node's value against its parent's.

use super::{Estimator, NodeColumns, NodeRule, Rule, Valuation, Valued};
use crate::error::Result;
use crate::explain::{Comparison, Trace};
use crate::forest::Forest;
use crate::normalise::{Case, Measure, is_flat, mean_of, std_of};
use crate::options::Reader;

/// Source: SPO (arXiv 2505.23564), VinePPO (arXiv 2410.01679).
pub static PARENT: Estimator = Estimator {
    name: "parent",
    summary: "each turn's value against the value before it",
    formula: "A(n) = V(n) - V(parent of n); with scale=std over (std of the siblings' V + eps)",
    rule: Rule::Node(read),
    weighs: false,
    reads_tokens: false,
};

/// What the siblings' spread does: nothing, or it divides.
#[derive(Debug, Clone, Copy)]
struct Spread {
    divides: bool,
    ddof: u32,
    eps: f64,
}

fn read(options: &mut Reader) -> Result<NodeRule> {
    let valuation = Valuation::read(options)?;
    let spread = Spread {
        divides: options.choice("scale", "none", &[("none", false), ("std", true)])?,
        ddof: options.zero_or_one("ddof", 0)?,
        eps: options.non_negative("eps", 1e-6)?,
    };
    Ok(Box::new(move |forest, sum, num_leaves, trace| {
        let valued = valuation.of(forest, sum, num_leaves)?;
        let advantage = if spread.divides || trace.is_on() {
            by_siblings(forest, &valued, num_leaves, spread, trace)?
        } else {
            differences(forest, &valued.value)
        };
        Ok(NodeColumns { value: valued.value, advantage, weight: None })
    }))
}

fn differences(forest: &Forest, value: &[f64]) -> Vec<f64> {
    let difference = |(&own, &parent): (&f64, &u32)| value.get(parent as usize).map_or(0.0, |above| own - above);
    value.iter().zip(&forest.parent).map(difference).collect()
}

fn by_siblings(
    forest: &Forest,
    valued: &Valued,
    num_leaves: &[u32],
    spread: Spread,
    trace: &mut Trace,
) -> Result<Vec<f64>> {
    let value = &valued.value;
    let mut advantage = vec![f64::NAN; value.len()];
    let mut members = vec![];
    for group in valued.siblings(forest, num_leaves).iter() {
        members.clear();
        members.extend(group.iter().map(|&node| value[node as usize]));
        let measure = spread.measure(&members, value[forest.parent[group[0] as usize] as usize]);
        measure.check(forest, group)?;
        for (&node, &member) in group.iter().zip(&members) {
            advantage[node as usize] = measure.of(member);
        }
        let term = Comparison { name: "parent", group: "siblings", weight: 1.0 };
        trace.note(term, group, &members, spread.ddof, measure);
    }
    Ok(advantage)
}

impl Spread {
    /// Siblings have one parent, whose value is the baseline.
    fn measure(self, values: &[f64], baseline: f64) -> Measure {
        if !self.divides {
            return Measure { case: Case::Compared, baseline, factor: 1.0, scale: 1.0 };
        }
        if values.len() < 2 {
            return Measure::zero(Case::Single);
        }
        if is_flat(values) {
            return Measure::zero(Case::Flat);
        }
        let scale = std_of(values, mean_of(values), self.ddof) + self.eps;
        Measure { case: Case::Compared, baseline, factor: 1.0, scale }
    }
}
