//! `bernoulli`: each candidate by itself, likelier where entropy rose.

use super::turns::{below, entropy_of};
use super::{Choice, Drawing, Rule};

/// Source: ARPO (arXiv 2507.19849), its entropy-based adaptive rollout; H as in `entropy`.
pub static BERNOULLI: Rule = Rule {
    name: "bernoulli",
    summary: "each candidate by itself, likelier where entropy has risen since the prompt",
    formula: "P(n) = clip(p0 + w * (H(n) - H(root)), 0, 1); of those drawn the N likeliest",
    needs: &["entropies"],
    reads_prompt: false,
    read: |options| {
        let p0 = options.number("p0", 0.5, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        let w = options.number("w", 0.2, "a finite number", |_| true)?;
        let scores = move |asked: &super::Asked| {
            let forest = asked.forest;
            let what = "the entropies of the turns below";
            let means = |nodes: &[u32]| below(forest, nodes, "bernoulli", what, |node| entropy_of(forest, node, 0));
            let tree_of = |node: u32| forest.tree[node as usize];
            let mut trees: Vec<u32> = asked.candidates.iter().map(|&node| tree_of(node)).collect();
            trees.sort_unstable();
            trees.dedup();
            let roots: Vec<u32> = trees.iter().map(|&tree| forest.root[tree as usize]).collect();
            let mut at_root = vec![0.0; forest.num_trees()];
            for (tree, mean) in trees.into_iter().zip(means(&roots)?.mean) {
                at_root[tree as usize] = mean;
            }
            let chance =
                |(&node, mean): (&u32, f64)| (p0 + w * (mean - at_root[tree_of(node) as usize])).clamp(0.0, 1.0);
            Ok(asked.candidates.iter().zip(means(asked.candidates)?.mean).map(chance).collect())
        };
        Ok(Choice { scores: Box::new(scores), drawing: Drawing::Each })
    },
};
