//! `contrast`: where a new turn is likeliest to be new, and its outcome to differ.

use super::{Asked, Choice, Drawing, Rule};
use crate::forest::NO_PARENT;
use crate::numbering::Numbering;
use crate::sampled::{SampledTurns, chance_of};
use crate::states::States;
use crate::value::first_trees;

/// Nodes of a prompt's trees whose paths hold the same tokens are one state. Its residual is the probability that is
/// left for turns not yet drawn there; s and k sum rewards and scored leaves over all nodes of the state.
pub static CONTRAST: Rule = Rule {
    name: "contrast",
    summary: "where new turns are likeliest to be new and outcomes to disagree, over the prompt's merged states",
    formula: "P(n) ~ q * (1 - q) * (residual + 0.02), q(n) = (s(n) + kappa * q(p)) / (k(n) + kappa), q above the root \
              = the run's mean reward, residual = 1 - sum of p over the different turns drawn there",
    needs: &["rewards", "logprobs"],
    reads_prompt: true,
    read: |options| {
        let kappa = options.non_negative("kappa", 1.0)?;
        let scores = move |asked: &Asked| {
            asked.check_logprobs("contrast")?;
            let states = States::of(asked.forest);
            let q = outcomes(asked, &states, kappa);
            let residual = residuals(asked, &states);
            Ok(asked.each(|node| {
                let state = states.behind[node as usize] as usize;
                q[state] * (1.0 - q[state]) * (residual[state] + LEAST)
            }))
        };
        Ok(Choice { scores: Box::new(scores), drawing: Drawing::InProportion })
    },
};

/// So that a state where every turn was drawn keeps a chance.
const LEAST: f64 = 0.02;

/// q of each state: the smoothed mean of the scaled rewards below, from the roots down.
fn outcomes(asked: &Asked, states: &States, kappa: f64) -> Vec<f64> {
    let forest = asked.forest;
    let first = first_trees(&forest.prompt);
    let ranges = reward_ranges(asked, &first);
    let (mut sum, mut count) = (vec![0.0; states.num()], vec![0.0; states.num()]);
    for (node, &reward) in forest.reward.iter().enumerate().filter(|(_, reward)| !reward.is_nan()) {
        let (low, high) = ranges[first[forest.tree[node] as usize] as usize];
        let state = states.behind[node] as usize;
        // halved, so that no range of finite rewards is infinite
        sum[state] += ((reward / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0)).clamp(0.0, 1.0);
        count[state] += 1.0;
    }
    for (state, &above) in states.above.iter().enumerate().rev() {
        if above != NO_PARENT {
            let (below, leaves) = (sum[state], count[state]);
            sum[above as usize] += below;
            count[above as usize] += leaves;
        }
    }
    let mut q = Vec::with_capacity(states.num());
    for (state, &above) in states.above.iter().enumerate() {
        let before = if above == NO_PARENT { asked.context.prior } else { q[above as usize] };
        let weight = count[state] + kappa;
        q.push(if weight == 0.0 { before } else { (sum[state] + kappa * before) / weight });
    }
    q
}

/// What is scaled to 0 and to 1, by the first tree of each prompt.
fn reward_ranges(asked: &Asked, first: &[u32]) -> Vec<(f64, f64)> {
    let forest = asked.forest;
    let mut ranges = vec![asked.context.reward_range.unwrap_or((0.0, 1.0)); forest.num_trees()];
    if asked.context.reward_range.is_none() {
        for (node, &reward) in forest.reward.iter().enumerate().filter(|(_, reward)| !reward.is_nan()) {
            let (low, high) = &mut ranges[first[forest.tree[node] as usize] as usize];
            (*low, *high) = (low.min(reward), high.max(reward));
        }
    }
    ranges
}

/// 1 − the summed probabilities of the different turns drawn at each state; 1 where no candidate is.
fn residuals(asked: &Asked, states: &States) -> Vec<f64> {
    let forest = asked.forest;
    let mut is_asked = vec![false; states.num()];
    for &node in asked.candidates {
        is_asked[states.behind[node as usize] as usize] = true;
    }
    let asked_state = |node: usize| states.at(forest, node as u32).filter(|&state| is_asked[state as usize]);
    let sampled = SampledTurns::of(forest, |node| asked_state(node).is_some());
    let mut turns = Numbering::with_capacity(asked.candidates.len());
    let mut likeliest: Vec<(u32, f64)> = vec![];
    for node in (0..forest.num_nodes()).filter(|&node| !sampled.turn(node).is_empty()) {
        let Some(state) = asked_state(node) else { continue };
        let chance = chance_of(forest, node);
        let turn = turns.of(state, sampled.turn(node));
        match likeliest.get_mut(turn as usize) {
            Some((_, known)) => *known = known.max(chance),
            None => likeliest.push((state, chance)),
        }
    }
    let mut residual = vec![1.0; states.num()];
    likeliest.into_iter().for_each(|(state, chance)| residual[state as usize] -= chance);
    residual.into_iter().map(|left: f64| left.clamp(0.0, 1.0)).collect()
}
