//! `uct`: high values, and what was tried least.

use super::{Choice, Drawing, Rule, inherited_values};
use crate::forest::NO_PARENT;

/// Source: UCT (Kocsis and Szepesvári 2006). What has no scored leaf below counts as one of its nearest valued ancestor's
/// value, so that a branch which fails again and again does not take all draws.
pub static UCT: Rule = Rule {
    name: "uct",
    summary: "high values, and nodes that were tried least beside their parent",
    formula: "V(n) + c * sqrt(ln k(p) / k(n)), k = scored leaves, p the parent; k(p) of a root = 2 * k(root)",
    needs: &["rewards"],
    reads_prompt: false,
    read: |options| {
        let c = options.non_negative("c", 1.0)?;
        let scores = move |asked: &super::Asked| {
            let sums = asked.leaf_sums("uct")?;
            let value = inherited_values(asked.forest, &sums);
            let leaves = |node: u32| f64::from(sums.num_leaves[node as usize].max(1));
            Ok(asked.each(|node| {
                let parent = asked.forest.parent[node as usize];
                let above = if parent == NO_PARENT { 2.0 * leaves(node) } else { leaves(parent) };
                value[node as usize] + c * (above.ln() / leaves(node)).sqrt()
            }))
        };
        Ok(Choice { scores: Box::new(scores), drawing: Drawing::Best { temperature: 0.0 } })
    },
};
