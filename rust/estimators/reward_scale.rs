//! What differences of rewards are divided by, prompt by prompt.

use crate::error::Result;
use crate::forest::Forest;
use crate::normalise::{Case, Groups, Measure, Scale, is_flat, mean_of, std_of};
use crate::options::Reader;
use crate::value::{first_trees, scored_leaves};

/// Nothing, a number, or the spread of the prompt's rewards.
#[derive(Debug, Clone, Copy)]
pub(super) struct RewardScale {
    scale: Scale,
    pub ddof: u32,
    eps: f64,
}

impl RewardScale {
    /// Reads `scale`, `ddof` and `eps`.
    pub fn read(options: &mut Reader, default: &str) -> Result<Self> {
        let named = [("none", Scale::None), ("std", Scale::Std)];
        Ok(Self {
            scale: options.choice_or_number("scale", default, &named, Scale::Constant)?,
            ddof: options.zero_or_one("ddof", 1)?,
            eps: options.non_negative("eps", 1e-6)?,
        })
    }

    /// Per tree: the measure of its prompt, whose baseline is still to be set.
    pub fn measures(self, forest: &Forest) -> Result<Vec<Measure>> {
        let fixed = |scale| Measure { case: Case::Compared, baseline: 0.0, factor: 1.0, scale };
        match self.scale {
            Scale::Constant(scale) => Ok(vec![fixed(scale); forest.num_trees()]),
            Scale::Std => self.spreads(forest),
            _ => Ok(vec![fixed(1.0); forest.num_trees()]),
        }
    }

    fn spreads(self, forest: &Forest) -> Result<Vec<Measure>> {
        let first = first_trees(&forest.prompt);
        let prompt_of = |node: u32| first[forest.tree[node as usize] as usize];
        let mut of_prompt = vec![Measure::zero(Case::Single); forest.num_trees()];
        for group in Groups::new(forest.num_trees(), &scored_leaves(forest), prompt_of).iter() {
            let rewards: Vec<f64> = group.iter().map(|&leaf| forest.reward[leaf as usize]).collect();
            let measure = match rewards.len() {
                1 => Measure::zero(Case::Single),
                _ if is_flat(&rewards) => Measure::zero(Case::Flat),
                _ => {
                    let scale = std_of(&rewards, mean_of(&rewards), self.ddof) + self.eps;
                    Measure { case: Case::Compared, baseline: 0.0, factor: 1.0, scale }
                }
            };
            measure.check(forest, group)?;
            of_prompt[prompt_of(group[0]) as usize] = measure;
        }
        Ok(first.iter().map(|&tree| of_prompt[tree as usize]).collect())
    }
}

/// Per tree: the scored leaves of its prompt.
pub(super) fn prompt_leaves(forest: &Forest) -> Vec<u32> {
    let first = first_trees(&forest.prompt);
    let mut num = vec![0; forest.num_trees()];
    for leaf in scored_leaves(forest) {
        num[first[forest.tree[leaf as usize] as usize] as usize] += 1;
    }
    first.iter().map(|&tree| num[tree as usize]).collect()
}
