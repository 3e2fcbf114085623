//! `depth`: a node's value against those of all nodes as deep.

use std::collections::HashMap;

use super::{Estimator, NodeColumns, Rule, Valuation};
use crate::explain::Comparison;
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Groups, Normaliser, normalise_groups};

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
    let mut number = HashMap::new();
    let mut group = vec![0; forest.num_nodes()];
    let mut nodes = vec![];
    for node in 0..forest.num_nodes() {
        if forest.parent[node] != NO_PARENT && num_leaves[node] > 0 {
            let next = number.len() as u32;
            group[node] = *number.entry((anchors[forest.tree[node] as usize], forest.depth[node])).or_insert(next);
            nodes.push(node as u32);
        }
    }
    Groups::new(number.len(), &nodes, |node| group[node as usize])
}
