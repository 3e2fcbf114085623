//! `tree-grpo`: a leaf against all leaves of its prompt and against those of its tree.

use super::grpo::within_prompts;
use super::{Estimator, LeafRule, Rule};
use crate::error::Result;
use crate::explain::{Comparison, Trace};
use crate::forest::Forest;
use crate::normalise::{Groups, Normaliser, normalise_groups};
use crate::options::Reader;
use crate::value::scored_leaves;

/// Source: Tree-GRPO (arXiv 2509.21240), inter-tree plus intra-tree advantage; its code's variants by `variant`.
pub static TREE_GRPO: Estimator = Estimator {
    name: "tree-grpo",
    summary: "each leaf against all leaves of its prompt, and against those of its own tree",
    formula: "A(l) = inter * N over the prompt's leaves of R(l) + intra * N over the tree's leaves of R(l)",
    rule: Rule::Leaf(read),
    weighs: false,
    reads_tokens: false,
};

/// Which terms there are: both, that of the tree, or the tree's of the normalised group's.
#[derive(Debug, Clone, Copy)]
enum Variant {
    Sum,
    IntraOnly,
    TwoNorm,
}

fn read(options: &mut Reader) -> Result<LeafRule> {
    let norm = Normaliser::read_leaf(options)?;
    let terms = Terms::read(options)?;
    Ok(Box::new(move |forest, trace| terms.of(forest, norm, trace)))
}

/// What the two terms are made of, and how much each counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    variant: Variant,
    inter: f64,
    intra: f64,
}

impl Terms {
    /// Reads `variant`, `inter` and `intra`.
    pub fn read(options: &mut Reader) -> Result<Self> {
        let variants = [("sum", Variant::Sum), ("intra_only", Variant::IntraOnly), ("two_norm", Variant::TwoNorm)];
        Ok(Self {
            variant: options.choice("variant", "sum", &variants)?,
            inter: options.non_negative("inter", 1.0)?,
            intra: options.non_negative("intra", 1.0)?,
        })
    }

    /// A(l) at scored leaves, NaN elsewhere.
    pub fn of(self, forest: &Forest, norm: Normaliser, trace: &mut Trace) -> Result<Vec<f64>> {
        let Self { variant, inter, intra } = self;
        let comparison = |name, group, weight| Comparison { name, group, weight };
        match variant {
            Variant::Sum => {
                let group = within_prompts(forest, norm, trace, comparison("inter", "prompt", inter))?;
                let own = comparison("intra", "tree", intra);
                let tree = within_trees(forest, norm, forest.reward.clone(), trace, own)?;
                Ok(group.iter().zip(&tree).map(|(group, tree)| inter * group + intra * tree).collect())
            }
            Variant::IntraOnly => {
                within_trees(forest, norm, forest.reward.clone(), trace, comparison("intra", "tree", 1.0))
            }
            Variant::TwoNorm => {
                let group = within_prompts(forest, norm, trace, comparison("inter", "prompt", 0.0))?;
                within_trees(forest, norm, group, trace, comparison("intra", "tree", 1.0))
            }
        }
    }
}

/// N over the leaves of its own tree of `x`.
fn within_trees(
    forest: &Forest,
    norm: Normaliser,
    mut x: Vec<f64>,
    trace: &mut Trace,
    term: Comparison,
) -> Result<Vec<f64>> {
    let groups = Groups::new(forest.num_trees(), &scored_leaves(forest), |node| forest.tree[node as usize]);
    normalise_groups(forest, &groups, norm, &mut x, trace, term)?;
    Ok(x)
}
