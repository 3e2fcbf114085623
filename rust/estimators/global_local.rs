//! `global-local`: a node's value against the prompt's and against its parent's.

use super::{Estimator, NodeColumns, NodeRule, Rule, Valuation};
use crate::error::Result;
use crate::explain::{Comparison, Figures, Trace};
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Case, Measure};
use crate::options::Reader;

/// Source: TreeRL (arXiv 2506.11902).
pub static GLOBAL_LOCAL: Estimator = Estimator {
    name: "global-local",
    summary: "each turn's value against the root's and the value before it, less where many leaves share it",
    formula: "A(n) = (global * (V(n) - V(root)) + local * (V(n) - V(parent of n))) / |L(n)|^q",
    rule: Rule::Node(read),
    weighs: false,
    reads_tokens: false,
};

/// How much each difference counts, and the power of |L(n)| that divides them.
#[derive(Debug, Clone, Copy)]
struct Parts {
    global: f64,
    local: f64,
    q: f64,
}

fn read(options: &mut Reader) -> Result<NodeRule> {
    let valuation = Valuation::read(options)?;
    let parts = Parts {
        global: options.non_negative("global", 1.0)?,
        local: options.non_negative("local", 1.0)?,
        q: options.non_negative("q", 0.5)?,
    };
    Ok(Box::new(move |forest, sum, num_leaves, trace| {
        let value = valuation.of(forest, sum, num_leaves)?.value;
        let advantage = (0..forest.num_nodes()).map(|node| parts.of(forest, &value, num_leaves, node, trace)).collect();
        Ok(NodeColumns { value, advantage, weight: None })
    }))
}

impl Parts {
    fn of(self, forest: &Forest, value: &[f64], num_leaves: &[u32], node: usize, trace: &mut Trace) -> f64 {
        let parent = forest.parent[node];
        if parent == NO_PARENT || num_leaves[node] == 0 {
            return f64::NAN;
        }
        let root = value[forest.root[forest.tree[node] as usize] as usize];
        let (own, above) = (value[node], value[parent as usize]);
        let scale = f64::from(num_leaves[node]).powf(self.q);
        if trace.watches(node as u32) {
            for (name, group, weight, mean) in
                [("global", "the root's value", self.global, root), ("local", "the parent's value", self.local, above)]
            {
                let measure = Measure { case: Case::Compared, baseline: mean, factor: 1.0, scale };
                let figures = Figures { size: 1, mean, std: f64::NAN };
                trace.note_one(Comparison { name, group, weight }, node as u32, own, figures, measure);
            }
        }
        self.global * ((own - root) / scale) + self.local * ((own - above) / scale)
    }
}
