//! What the policy sampled of each turn, without what came from elsewhere: tokens, and how likely they were.

use crate::forest::Forest;

/// The sampled tokens of some nodes.
pub(crate) struct SampledTurns {
    start: Vec<usize>,
    token_ids: Vec<u32>,
}

impl SampledTurns {
    /// Of the nodes that are asked for; the others have none.
    pub fn of(forest: &Forest, is_asked: impl Fn(usize) -> bool) -> Self {
        let mut turns = Self { start: Vec::with_capacity(forest.num_nodes() + 1), token_ids: vec![] };
        turns.start.push(0);
        for node in 0..forest.num_nodes() {
            if is_asked(node) {
                let sampled = forest.token_range(node).filter(|&token| forest.sampled[token]);
                turns.token_ids.extend(sampled.map(|token| forest.token_ids[token]));
            }
            turns.start.push(turns.token_ids.len());
        }
        turns
    }

    /// Those of one node.
    pub fn turn(&self, node: usize) -> &[u32] {
        &self.token_ids[self.start[node]..self.start[node + 1]]
    }
}

/// Log-probabilities of a turn's sampled tokens, nats.
pub(crate) fn logprobs_of(forest: &Forest, node: usize) -> impl Iterator<Item = f32> {
    let tokens = forest.token_range(node);
    let all = forest.sampled[tokens.clone()].iter().zip(&forest.logprobs[tokens]);
    all.filter(|(sampled, _)| **sampled).map(|(_, &logprob)| logprob)
}

/// The probability of all of a turn's sampled tokens.
pub(crate) fn chance_of(forest: &Forest, node: usize) -> f64 {
    logprobs_of(forest, node).map(f64::from).sum::<f64>().exp()
}
