//! `state-loo`: a draw against the other draws at its state.

use super::reward_scale::{RewardScale, prompt_leaves};
use super::{Estimator, NodeColumns, NodeRule, Rule};
use crate::error::Result;
use crate::explain::{Comparison, Trace};
use crate::families::Families;
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Case, Measure};
use crate::options::Reader;
use crate::states::States;

/// Source: ours; RLOO (arXiv 2402.14740) and VinePPO (arXiv 2410.01679) met. With `siblings=distinct` the mean of Des
/// Raj's ordered estimates of draws without replacement (JASA 51, 1956).
pub static STATE_LOO: Estimator = Estimator {
    name: "state-loo",
    summary: "each turn's value against the other turns drawn at its state, pooled over the prompt's trees",
    formula: "A(n) = (V(n) - (sum of the others' V + kappa * baseline above) / (number of others + kappa)) / scale",
    rule: Rule::Node(read),
    weighs: true,
    reads_tokens: true,
};

fn read(options: &mut Reader) -> Result<NodeRule> {
    let kappa = options.non_negative("kappa", 3.0)?;
    let scale = RewardScale::read(options, "std")?;
    let distinct = options.choice("siblings", "independent", &[("independent", false), ("distinct", true)])?;
    Ok(Box::new(move |forest, _, num_leaves, trace| {
        let states = States::of(forest);
        let families = if distinct {
            Families::distinct(forest, &states, num_leaves)?
        } else {
            Families::independent(forest, &states, num_leaves)
        };
        let pool = Pool::new(forest, num_leaves, &states, &families);
        let drawn = pool.baselines(forest, kappa);
        columns(forest, num_leaves, &pool, &drawn, scale, trace)
    }))
}

/// V of every state and of every draw, and what each draw estimates of its state's.
struct Pool<'a> {
    states: &'a States,
    families: &'a Families,
    /// Per node; a root's is its state's. NaN where no scored leaf is below.
    value: Vec<f64>,
    estimate: Vec<f64>,
}

/// Per node: what its value is measured from, and its share of the draws that reach its end.
struct Drawn {
    baseline: Vec<f64>,
    share: Vec<f64>,
}

impl<'a> Pool<'a> {
    /// A state is below all those with lower numbers that lead to it: the last comes first.
    fn new(forest: &Forest, num_leaves: &[u32], states: &'a States, families: &'a Families) -> Self {
        let mut of_state = vec![f64::NAN; states.num()];
        let mut estimate = vec![f64::NAN; forest.num_nodes()];
        let reward = |draw: u32| forest.reward[draw as usize];
        let groups: Vec<&[u32]> = families.draws.iter().collect();
        for draws in groups.into_iter().rev() {
            let value = |draw| {
                if reward(draw).is_nan() { of_state[states.behind[draw as usize] as usize] } else { reward(draw) }
            };
            for family in families.split(forest, draws) {
                families.estimates(family, value, &mut estimate);
            }
            let sum: f64 = draws.iter().map(|&draw| estimate[draw as usize]).sum();
            let above = forest.parent[draws[0] as usize] as usize;
            of_state[states.behind[above] as usize] = sum / draws.len() as f64;
        }
        let value = |node: usize| match (num_leaves[node], forest.reward[node].is_nan()) {
            (0, _) => f64::NAN,
            (_, true) => of_state[states.behind[node] as usize],
            _ => forest.reward[node],
        };
        let value = (0..forest.num_nodes()).map(value).collect();
        Self { states, families, value, estimate }
    }

    /// From the roots down: reach and mean baseline of a state are known before its draws are looked at.
    fn baselines(&self, forest: &Forest, kappa: f64) -> Drawn {
        let none = vec![f64::NAN; forest.num_nodes()];
        let mut drawn = Drawn { baseline: none.clone(), share: none };
        let mut arrived = vec![Arrived::default(); self.states.num()];
        for draws in self.families.draws.iter() {
            let state = self.states.behind[forest.parent[draws[0] as usize] as usize] as usize;
            let here = if self.states.above[state] == NO_PARENT { Arrived::ROOT } else { arrived[state] };
            let is_root = self.states.above[state] == NO_PARENT;
            let above = (!is_root).then(|| here.baselines / f64::from(here.num));
            let total = self.sum(draws);
            for family in self.families.split(forest, draws) {
                let elsewhere = (total - self.sum(family), draws.len() - family.len());
                let baselines = self.of_family(family, elsewhere, above, kappa);
                self.families.pooled(family, &baselines, |draw, count, baseline| {
                    let share = here.reach * count / draws.len() as f64;
                    drawn.baseline[draw as usize] = baseline;
                    drawn.share[draw as usize] = share;
                    if forest.reward[draw as usize].is_nan() {
                        arrived[self.states.behind[draw as usize] as usize].add(share, baseline);
                    }
                });
            }
        }
        drawn
    }

    fn sum(&self, draws: &[u32]) -> f64 {
        draws.iter().map(|&draw| self.estimate[draw as usize]).sum()
    }

    /// What each estimate of a family is measured from: those elsewhere at the state, and those before it.
    fn of_family(&self, family: &[u32], elsewhere: (f64, usize), above: Option<f64>, kappa: f64) -> Vec<f64> {
        let (mut sum, mut num) = elsewhere;
        let mut baseline = |&draw: &u32| {
            let own = self.estimate[draw as usize];
            let baseline = match (num, above) {
                (0, above) => above.unwrap_or(own),
                (_, None) => sum / num as f64,
                (_, Some(above)) => (sum + kappa * above) / (num as f64 + kappa),
            };
            sum += own;
            num += 1;
            baseline
        };
        family.iter().map(&mut baseline).collect()
    }
}

/// What the draws that lead to a state bring.
#[derive(Debug, Clone, Copy, Default)]
struct Arrived {
    reach: f64,
    baselines: f64,
    num: u32,
}

impl Arrived {
    const ROOT: Self = Self { reach: 1.0, baselines: 0.0, num: 0 };

    fn add(&mut self, share: f64, baseline: f64) {
        self.reach += share;
        self.baselines += baseline;
        self.num += 1;
    }
}

fn columns(
    forest: &Forest,
    num_leaves: &[u32],
    pool: &Pool,
    drawn: &Drawn,
    scale: RewardScale,
    trace: &mut Trace,
) -> Result<NodeColumns> {
    let (measures, leaves) = (scale.measures(forest)?, prompt_leaves(forest));
    let measure = |node: u32| {
        let measure = measures[forest.tree[node as usize] as usize];
        if measure.case == Case::Compared {
            Measure { baseline: drawn.baseline[node as usize], ..measure }
        } else {
            measure
        }
    };
    let advantage =
        |node: usize| if num_leaves[node] == 0 { f64::NAN } else { measure(node as u32).of(pool.value[node]) };
    let weight = |node: usize| f64::from(leaves[forest.tree[node] as usize]) * drawn.share[node];
    let nodes = 0..forest.num_nodes();
    let (advantage, weight) = (nodes.clone().map(advantage).collect(), nodes.map(weight).collect());
    for draws in pool.families.draws.iter() {
        if let Some(draw) = draws.iter().copied().find(|&draw| trace.watches(draw)) {
            let raw: Vec<f64> = draws.iter().map(|&draw| pool.value[draw as usize]).collect();
            let comparison = Comparison { name: "state-loo", group: "state", weight: 1.0 };
            trace.note(comparison, draws, &raw, scale.ddof, measure(draw));
        }
    }
    Ok(NodeColumns { value: pool.value.clone(), advantage, weight: Some(weight) })
}
