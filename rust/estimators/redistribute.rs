//! `redistribute`: a turn takes the mean of what the leaves below it get.

use super::grpo::within_prompts;
use super::tree_grpo::Terms;
use super::{Estimator, NodeColumns, NodeRule, Rule, leaf_means};
use crate::error::Result;
use crate::explain::{Comparison, Figures, Trace};
use crate::forest::Forest;
use crate::normalise::{Case, Measure, Normaliser};
use crate::options::Reader;
use crate::value::leaf_sums;

/// Source: TreeAdv (arXiv 2601.03703), and the hard form of ARPO (arXiv 2507.19849).
pub static REDISTRIBUTE: Estimator = Estimator {
    name: "redistribute",
    summary: "each turn takes the mean of what the leaves below it get by grpo or tree-grpo",
    formula: "A(n) = mean over L(n) of A(l), with A(l) of the base",
    rule: Rule::Node(read),
    weighs: false,
    reads_tokens: false,
};

fn read(options: &mut Reader) -> Result<NodeRule> {
    let by_trees = options.choice("base", "grpo", &[("grpo", false), ("tree-grpo", true)])?;
    let norm = Normaliser::read_leaf(options)?;
    let terms = options.only("base=tree-grpo", by_trees, Terms::read)?.filter(|_| by_trees);
    let of_leaves = move |forest: &Forest| {
        let (mut silent, whole) = (Trace::default(), Comparison { name: "base", group: "prompt", weight: 1.0 });
        match terms {
            Some(terms) => terms.of(forest, norm, &mut silent),
            None => within_prompts(forest, norm, &mut silent, whole),
        }
    };
    Ok(Box::new(move |forest, sum, num_leaves, trace| {
        let leaf = of_leaves(forest)?;
        let total = leaf_sums(&forest.parent, &leaf).sum;
        let advantage: Vec<f64> = total.iter().zip(num_leaves).map(|(sum, &num)| sum / f64::from(num)).collect();
        if trace.is_on() {
            note(&advantage, num_leaves, trace);
        }
        Ok(NodeColumns { value: leaf_means(forest, sum, num_leaves)?, advantage, weight: None })
    }))
}

fn note(advantage: &[f64], num_leaves: &[u32], trace: &mut Trace) {
    let comparison = Comparison { name: "redistribute", group: "advantages of the leaves below", weight: 1.0 };
    let measure = Measure { case: Case::Compared, baseline: 0.0, factor: 1.0, scale: 1.0 };
    for ((node, &mean), &size) in (0..).zip(advantage).zip(num_leaves) {
        if size > 0 {
            trace.note_one(comparison, node, mean, Figures { size, mean, std: f64::NAN }, measure);
        }
    }
}
