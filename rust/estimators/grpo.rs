//! `grpo`: a leaf against all leaves of its prompt.

use super::{Estimator, Rule};
use crate::error::Result;
use crate::explain::{Comparison, Trace};
use crate::forest::Forest;
use crate::normalise::{Groups, Normaliser, normalise_groups};
use crate::value::{first_trees, scored_leaves};

/// Source: GRPO (arXiv 2402.03300); with `scale=none` Dr. GRPO, with `center=loo` besides RLOO.
pub static GRPO: Estimator = Estimator {
    name: "grpo",
    summary: "each leaf against all leaves of its prompt",
    formula: "A(l) = N over the prompt's leaves of R(l)",
    rule: Rule::Leaf(|options| {
        let norm = Normaliser::read_leaf(options)?;
        let term = Comparison { name: "grpo", group: "prompt", weight: 1.0 };
        Ok(Box::new(move |forest, trace| within_prompts(forest, norm, trace, term)))
    }),
    weighs: false,
    reads_tokens: false,
};

/// N over the prompt's leaves of R.
pub(super) fn within_prompts(
    forest: &Forest,
    norm: Normaliser,
    trace: &mut Trace,
    term: Comparison,
) -> Result<Vec<f64>> {
    let mut advantage = forest.reward.clone();
    let first = first_trees(&forest.prompt);
    let by_prompt = |node: u32| first[forest.tree[node as usize] as usize];
    let groups = Groups::new(forest.num_trees(), &scored_leaves(forest), by_prompt);
    normalise_groups(forest, &groups, norm, &mut advantage, trace, term)?;
    Ok(advantage)
}
