//! `sibling`: a node's value against those of its siblings.

use super::{Estimator, NodeColumns, Rule, Valuation};
use crate::explain::Comparison;
use crate::normalise::{Normaliser, normalise_groups};

/// Source: TreeRPO (arXiv 2506.05183) with `scale=bernoulli`, d-TreeRPO (arXiv 2512.09675) with `center=loo`.
pub static SIBLING: Estimator = Estimator {
    name: "sibling",
    summary: "each turn's value against those of its siblings",
    formula: "A(n) = N over the children of n's parent of V(n)",
    rule: Rule::Node(|options| {
        let valuation = Valuation::read(options)?;
        let norm = Normaliser::read(options, "none")?;
        let term = Comparison { name: "sibling", group: "siblings", weight: 1.0 };
        Ok(Box::new(move |forest, sum, num_leaves, trace| {
            let valued = valuation.of(forest, sum, num_leaves)?;
            let groups = valued.siblings(forest, num_leaves);
            let mut advantage = valued.value.clone();
            normalise_groups(forest, &groups, norm, &mut advantage, trace, term)?;
            Ok(NodeColumns { value: valued.value, advantage, weight: None })
        }))
    }),
    weighs: false,
    reads_tokens: false,
};
