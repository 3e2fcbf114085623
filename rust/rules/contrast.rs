//! `contrast`: where a new turn is likeliest to be new, and its outcome to differ.

use std::borrow::Cow;
use std::collections::HashMap;

use super::turns::logprobs_of;
use super::{Asked, Choice, Drawing, Rule};
use crate::forest::{Forest, NO_PARENT};
use crate::states::States;

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
    let ranges = reward_ranges(asked);
    let (mut sum, mut count) = (vec![0.0; states.num()], vec![0.0; states.num()]);
    for (node, &reward) in forest.reward.iter().enumerate().filter(|(_, reward)| !reward.is_nan()) {
        let (low, high) = ranges[&forest.prompt[forest.tree[node] as usize]];
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

/// What is scaled to 0 and to 1, a prompt.
fn reward_ranges(asked: &Asked) -> HashMap<u32, (f64, f64)> {
    let forest = asked.forest;
    let start = asked.context.reward_range.unwrap_or((0.0, 1.0));
    let mut ranges: HashMap<u32, (f64, f64)> = forest.prompt.iter().map(|&prompt| (prompt, start)).collect();
    if asked.context.reward_range.is_none() {
        for (node, &reward) in forest.reward.iter().enumerate().filter(|(_, reward)| !(0.0..=1.0).contains(*reward)) {
            if let Some((low, high)) = ranges.get_mut(&forest.prompt[forest.tree[node] as usize]) {
                (*low, *high) = (low.min(reward), high.max(reward));
            }
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
    let mut turns: HashMap<(u32, Cow<[u32]>), usize> = HashMap::new();
    let mut likeliest: Vec<(u32, f64)> = vec![];
    for node in 0..forest.num_nodes() {
        let Some(state) = states.at(forest, node as u32).filter(|&state| is_asked[state as usize]) else { continue };
        let turn = sampled_tokens(forest, node);
        if turn.is_empty() {
            continue;
        }
        let chance = logprobs_of(forest, node).map(f64::from).sum::<f64>().exp();
        let place = *turns.entry((state, turn)).or_insert(likeliest.len());
        match likeliest.get_mut(place) {
            Some((_, known)) => *known = known.max(chance),
            None => likeliest.push((state, chance)),
        }
    }
    let mut residual = vec![1.0; states.num()];
    likeliest.into_iter().for_each(|(state, chance)| residual[state as usize] -= chance);
    residual.into_iter().map(|left: f64| left.clamp(0.0, 1.0)).collect()
}

/// What the policy sampled of a node; as it is where that comes first.
fn sampled_tokens(forest: &Forest, node: usize) -> Cow<'_, [u32]> {
    let tokens = forest.token_range(node);
    let (token_ids, sampled) = (&forest.token_ids[tokens.clone()], &forest.sampled[tokens]);
    let first = sampled.iter().position(|&sampled| !sampled).unwrap_or(sampled.len());
    if sampled[first..].iter().all(|&sampled| !sampled) {
        return Cow::Borrowed(&token_ids[..first]);
    }
    Cow::Owned(token_ids.iter().zip(sampled).filter(|(_, sampled)| **sampled).map(|(&token, _)| token).collect())
}
