//! What a branch would decide again: means over the turns that follow a node.

use crate::error::{Error, Fault, Result};
use crate::forest::{Forest, NO_PARENT};
use crate::options::Reader;
use crate::sampled::logprobs_of;

/// Options of the rules that look for undecided turns.
#[derive(Debug, Clone, Copy)]
pub struct Undecided {
    alpha: f64,
    /// Of a turn's sampled tokens so many count; 0 = all.
    pub first_tokens: usize,
    pub temperature: f64,
}

impl Undecided {
    pub fn read(options: &mut Reader) -> Result<Self> {
        Ok(Self {
            alpha: options.non_negative("alpha", 0.1)?,
            first_tokens: options.whole("first_tokens", 0, 0)? as usize,
            temperature: options.non_negative("temperature", 0.0)?,
        })
    }

    /// The mean, less a penalty for each turn beyond the first.
    pub fn scores(&self, below: &Below) -> Vec<f64> {
        let score = |(mean, &children): (&f64, &u32)| mean - self.alpha * (f64::from(children) - 1.0);
        below.mean.iter().zip(&below.num_children).map(score).collect()
    }
}

/// Per node asked for: how many turns follow it, and the mean of a quantity over them.
pub struct Below {
    pub mean: Vec<f64>,
    pub num_children: Vec<u32>,
}

/// Takes a quantity's mean over the children of each of `nodes` (each named once) where it is known.
///
/// Refused for a node none of whose children has it.
pub fn below(
    forest: &Forest,
    nodes: &[u32],
    rule: &'static str,
    what: &'static str,
    mut quantity: impl FnMut(usize) -> Option<f64>,
) -> Result<Below> {
    let mut slot = vec![NO_PARENT; forest.num_nodes()];
    for (&node, place) in nodes.iter().zip(0..) {
        slot[node as usize] = place;
    }
    let (mut mean, mut known) = (vec![0.0; nodes.len()], vec![0_u32; nodes.len()]);
    let mut num_children = vec![0; nodes.len()];
    for (node, &parent) in forest.parent.iter().enumerate() {
        let place = slot.get(parent as usize).map_or(usize::MAX, |&place| place as usize);
        if place < nodes.len() {
            num_children[place] += 1;
            if let Some(of_turn) = quantity(node) {
                mean[place] += of_turn;
                known[place] += 1;
            }
        }
    }
    if let Some(place) = known.iter().position(|&known| known == 0) {
        return Err(forest.fault(nodes[place] as usize, Fault::RuleNeeds { rule, what }));
    }
    mean.iter_mut().zip(known).for_each(|(mean, known)| *mean /= f64::from(known));
    Ok(Below { mean, num_children })
}

/// Mean entropy of the distributions that a turn was sampled from, nats.
pub fn entropy_of(forest: &Forest, node: usize, first_tokens: usize) -> Option<f64> {
    if first_tokens == 0 {
        return Some(forest.entropy[node]).filter(|entropy| !entropy.is_nan());
    }
    let tokens = forest.token_range(node);
    let sampled = forest.sampled[tokens.clone()].iter();
    let of_sampled = sampled.zip(&forest.entropies[tokens]).filter(|(sampled, _)| **sampled).take(first_tokens);
    mean(of_sampled.filter(|(_, entropy)| !entropy.is_nan()).map(|(_, &entropy)| entropy))
}

/// Mean −log-probability of a turn's sampled tokens, nats.
pub fn surprisal_of(forest: &Forest, node: usize, first_tokens: usize) -> Option<f64> {
    let first_tokens = if first_tokens == 0 { usize::MAX } else { first_tokens };
    let surprisal = mean(logprobs_of(forest, node).take(first_tokens).map(|logprob| -logprob));
    surprisal.filter(|surprisal| surprisal.is_finite())
}

fn mean(values: impl Iterator<Item = f32>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + f64::from(value), count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The error for what surprisal is made of.
pub fn needs_logprobs(forest: &Forest, node: u32, rule: &'static str) -> Error {
    forest.fault(node as usize, Fault::RuleNeeds { rule, what: "finite log-probabilities" })
}
