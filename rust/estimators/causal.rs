//! `causal`: the return of each continuation against what was known where it started, before its turns were drawn.

use super::reward_scale::{RewardScale, prompt_leaves};
use super::{Estimator, NodeColumns, NodeRule, Rule};
use crate::continuations::{Continuations, RoundCounts};
use crate::error::Result;
use crate::explain::{Comparison, Figures, Trace};
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::{Case, Groups, Measure, mean_of, std_of};
use crate::options::Reader;
use crate::states::States;
use crate::value::{ValueRule, anchors, values};

/// Source: ours. Whatever chose where to expand, a turn's expected update is that of the policy gradient at its state.
pub static CAUSAL: Estimator = Estimator {
    name: "causal",
    summary: "the reward that each expansion ended with, against those known at its start before it was drawn",
    formula: "A(n) = (R of the leaf that n's continuation ended with - mean R of those known at its start) / scale",
    rule: Rule::Node(read),
    weighs: true,
    reads_tokens: true,
};

fn read(options: &mut Reader) -> Result<NodeRule> {
    let scale = RewardScale::read(options, "none")?;
    let by_reach = options.choice("weight", "one", &[("one", false), ("reach", true)])?;
    Ok(Box::new(move |forest, sum, num_leaves, trace| {
        let continuations = Continuations::of(forest, "causal")?;
        let drawn = Drawn { forest, states: &States::of(forest), continuations: &continuations };
        let advantage = drawn.advantages(num_leaves, scale, trace)?;
        let weight = if by_reach { drawn.shares() } else { vec![1.0; forest.num_nodes()] };
        let returned = |node: usize| !continuations.reward[node].is_nan() || forest.parent[node] == NO_PARENT;
        let weight = weight.into_iter().enumerate().map(|(node, weight)| if returned(node) { weight } else { 0.0 });
        let value = values(forest, sum, num_leaves, ValueRule::LeafMean, &anchors(forest, false))?;
        Ok(NodeColumns { value, advantage, weight: Some(weight.collect()) })
    }))
}

#[derive(Debug, Clone, Copy)]
struct Drawn<'a> {
    forest: &'a Forest,
    states: &'a States,
    continuations: &'a Continuations,
}

impl Drawn<'_> {
    /// All turns of a continuation have that of the first; 0 where it ended without a reward.
    fn advantages(self, num_leaves: &[u32], scale: RewardScale, trace: &mut Trace) -> Result<Vec<f64>> {
        let Self { forest, continuations, .. } = self;
        let measures = scale.measures(forest)?;
        let mut measure_of = vec![Measure::zero(Case::Single); forest.num_nodes()];
        self.baselines(|start, baseline| {
            let measure = measures[forest.tree[start as usize] as usize];
            let compared = measure.case == Case::Compared;
            measure_of[start as usize] = if compared { Measure { baseline, ..measure } } else { measure };
        });
        let mut advantage = vec![f64::NAN; forest.num_nodes()];
        for node in (0..forest.num_nodes()).filter(|&node| num_leaves[node] > 0) {
            let (first, reward) = (continuations.first[node], continuations.reward[node]);
            if first == NO_PARENT || reward.is_nan() {
                advantage[node] = 0.0;
                continue;
            }
            let measure = measure_of[first as usize];
            advantage[node] = measure.of(reward);
            let comparison = Comparison { name: "causal", group: "known before", weight: 1.0 };
            if trace.watches(node as u32) {
                let known = self.known(first);
                let spread = std_of(&known, mean_of(&known), scale.ddof);
                let figures = Figures { size: known.len() as u32, mean: measure.baseline, std: spread };
                trace.note_one(comparison, node as u32, reward, figures, measure);
            }
        }
        Ok(advantage)
    }

    fn state_of(self, node: u32) -> u32 {
        self.states.behind[self.forest.parent[node as usize] as usize]
    }

    /// Draws whose continuations ended with a reward.
    fn returned(self) -> Vec<u32> {
        let is_one = |&node: &u32| {
            self.forest.parent[node as usize] != NO_PARENT && !self.continuations.reward[node as usize].is_nan()
        };
        (0..self.forest.num_nodes() as u32).filter(is_one).collect()
    }

    /// Per start: the mean reward of the continuations that came by its state in earlier rounds, and of the others that
    /// start there in its own; 0 where there is none.
    fn baselines(self, mut take: impl FnMut(u32, f64)) {
        let Self { forest, continuations, .. } = self;
        let reward = |node: u32| continuations.reward[node as usize];
        let mut draws = vec![];
        for group in Groups::new(self.states.num(), &self.returned(), |node| self.state_of(node)).iter() {
            draws.clear();
            draws.extend_from_slice(group);
            draws.sort_by_key(|&draw| forest.round[draw as usize]);
            let mut earlier = Known::default();
            for round in draws.chunk_by(|&a, &b| forest.round[a as usize] == forest.round[b as usize]) {
                let mut known = earlier;
                round.iter().filter(|&&draw| continuations.starts(draw)).for_each(|&draw| known.add(reward(draw)));
                for &start in round.iter().filter(|&&draw| continuations.starts(draw)) {
                    take(start, known.mean_without(reward(start)));
                }
                round.iter().for_each(|&draw| earlier.add(reward(draw)));
            }
        }
    }

    /// What a start is measured from, one by one: for one that is explained.
    fn known(self, start: u32) -> Vec<f64> {
        let Self { forest, continuations, .. } = self;
        let (state, own) = (self.state_of(start), forest.round[start as usize]);
        let counts = |&draw: &u32| {
            let round = forest.round[draw as usize];
            let is_known = round < own || (round == own && continuations.starts(draw) && draw != start);
            self.state_of(draw) == state && is_known
        };
        self.returned().into_iter().filter(counts).map(|draw| continuations.reward[draw as usize]).collect()
    }

    /// Per node: K times its share of the draws that come by, as it was known before the draw. A root has 1.
    ///
    /// Known are the draws of earlier rounds, how many start at the same state in its round, and its own turns before.
    fn shares(self) -> Vec<f64> {
        let Self { forest, states, continuations } = self;
        let nodes = || (0..forest.num_nodes() as u32).filter(|&node| forest.parent[node as usize] != NO_PARENT);
        let drawn = |node: u32| (self.state_of(node), forest.round[node as usize]);
        let draws = RoundCounts::new(states, nodes().map(drawn));
        let starts = RoundCounts::new(states, nodes().filter(|&node| continuations.starts(node)).map(drawn));
        let leads = nodes().filter(|&node| forest.has_child[node as usize]);
        let arrivals =
            RoundCounts::new(states, leads.map(|node| (states.behind[node as usize], forest.round[node as usize])));
        let leaves = prompt_leaves(forest);
        let mut weight = vec![1.0; forest.num_nodes()];
        for node in nodes() {
            let (state, round) = drawn(node);
            weight[node as usize] = if continuations.starts(node) {
                let mut share = (draws.before(state, round) + starts.during(state, round)).recip();
                let mut at = state;
                while states.above[at as usize] != NO_PARENT {
                    let above = states.above[at as usize];
                    share *= arrivals.before(at, round) / draws.before(above, round);
                    at = above;
                }
                share * f64::from(leaves[forest.tree[node as usize] as usize])
            } else {
                let before = weight[forest.parent[node as usize] as usize];
                before * (arrivals.before(state, round) + 1.0) / (draws.before(state, round) + 1.0)
            };
        }
        weight
    }
}

/// Rewards that are known, added up.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    sum: f64,
    num: u32,
}

impl Known {
    fn add(&mut self, reward: f64) {
        self.sum += reward;
        self.num += 1;
    }

    fn mean_without(self, own: f64) -> f64 {
        if self.num < 2 { 0.0 } else { (self.sum - own) / f64::from(self.num - 1) }
    }
}
