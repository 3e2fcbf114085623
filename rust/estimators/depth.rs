//! `depth`: a node's value against those of all nodes as deep.

use std::slice::from_ref;

use super::{Estimator, NodeColumns, Rule, Valuation};
use crate::explain::Comparison;
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Groups, Normaliser, normalise_groups};
use crate::numbering::Numbering;

/// Source: BranchGRPO (arXiv 2509.06040).
pub static DEPTH: Estimator = Estimator {
    name: "depth",
    summary: "each turn's value against those of all turns as deep",
    formula: "A(n) = N over the nodes as deep as n of V(n)",
    rule: Rule::Node(|options| {
        let valuation = Valuation::read(options)?;
        let norm = Normaliser::read(options, "std")?;
        let comparison = Comparison { name: "depth", group: "turns as deep", weight: 1.0 };
        Ok(Box::new(move |forest, sum, num_leaves, trace| {
            let valued = valuation.of(forest, sum, num_leaves)?;
            let groups = as_deep(forest, num_leaves, &valued.anchors);
            let mut advantage = valued.value.clone();
            normalise_groups(forest, &groups, norm, &mut advantage, trace, comparison)?;
            Ok(NodeColumns { value: valued.value, advantage, weight: None })
        }))
    }),
    weighs: false,
    reads_tokens: false,
};

/// Nodes with a value below the roots, grouped with those as deep in the trees of one anchor.
fn as_deep(forest: &Forest, num_leaves: &[u32], anchors: &[u32]) -> Groups {
    let mut numbering = Numbering::with_capacity(forest.num_trees());
    let mut group = vec![0; forest.num_nodes()];
    let mut nodes = vec![];
    for node in 0..forest.num_nodes() {
        if forest.parent[node] != NO_PARENT && num_leaves[node] > 0 {
            group[node] = numbering.of(anchors[forest.tree[node] as usize], from_ref(&forest.depth[node]));
            nodes.push(node as u32);
        }
    }
    Groups::new(numbering.len(), &nodes, |node| group[node as usize])
}
