//! Layout -> micro-batches: what one forward computes, at most so many tokens where paths allow it.

use std::ops::Range;

use crate::credit::Credit;
use crate::error::{Error, Result};
use crate::forest::NO_PARENT;
use crate::pack::{Layout, Turn};
use crate::token_tree::{Segments, TokenTree};

/// One forward: the tokens that it computes, what sees what, and the targets of the turns that end in it.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// First tokens: a path computed again, owned by an earlier micro-batch.
    pub num_context: u32,
    pub tree: TokenTree,
    pub segments: Segments,
    /// Tokens whose logits are read, ascending.
    pub predictors: Vec<u32>,
    /// Per target, ascending: an index into `predictors`.
    pub target_row: Vec<u32>,
    pub target_ids: Vec<u32>,
    /// Of sampling, nats.
    pub logprobs: Vec<f32>,
    pub gain: Vec<f64>,
    pub penalty: Vec<f64>,
    pub weights: Vec<f64>,
    pub gain_weights: Vec<f64>,
    pub penalty_weights: Vec<f64>,
    /// Per target: which of this micro-batch's turns, which row of the layout (where it has rows).
    pub turn: Vec<u32>,
    pub row: Option<Vec<u32>>,
}

impl Layout {
    /// Cuts the layout into micro-batches of at most `max_tokens` where paths allow it.
    ///
    /// Shared: whole subtrees stay together where they fit, and the path above a cut is computed again. Rows: as many as
    /// fit with their padding. A run or row that is longer goes alone. Every target is in exactly one micro-batch.
    pub fn micro_batches(&self, max_tokens: usize) -> Result<Vec<MicroBatch>> {
        if max_tokens == 0 {
            let (got, expected) = ("0".to_owned(), "1 or more".to_owned());
            return Err(Error::OptionValue { name: "max_tokens".to_owned(), got, expected });
        }
        let ranges = self.owned_ranges(max_tokens);
        let mut turns: Vec<Vec<&Turn>> = vec![vec![]; ranges.len()];
        for turn in &self.turns {
            turns[ranges.partition_point(|range| range.end <= turn.last_token)].push(turn);
        }
        Ok(ranges.into_iter().zip(turns).map(|(range, turns)| self.cut(range, &turns)).collect())
    }

    /// The tokens that each micro-batch owns: whole runs.
    fn owned_ranges(&self, max_tokens: usize) -> Vec<Range<u32>> {
        let mut ranges = vec![];
        let (mut first, mut num_runs) = (0, 0);
        for run in self.tree.run_start.windows(2) {
            num_runs += 1;
            if run[0] > first && self.is_full(first, run[0]..run[1], num_runs, max_tokens) {
                ranges.push(first..run[0]);
                (first, num_runs) = (run[0], 1);
            }
        }
        if self.tree.num_tokens() > 0 {
            ranges.push(first..self.tree.num_tokens());
        }
        ranges
    }

    /// Whether `run` shall begin a micro-batch rather than be the `num_runs`-th of the one that begins at `first`.
    fn is_full(&self, first: u32, run: Range<u32>, num_runs: usize, max_tokens: usize) -> bool {
        let TokenTree { positions, subtree_end, .. } = &self.tree;
        if !self.shared {
            let longest = (subtree_end[first as usize] - first) as usize;
            return longest * num_runs > max_tokens;
        }
        let used = (positions[first as usize] + run.start - first) as usize;
        let subtree = (subtree_end[run.start as usize] - run.start) as usize;
        let fits_alone = positions[run.start as usize] as usize + subtree <= max_tokens;
        used + run.len() > max_tokens || (used + subtree > max_tokens && fits_alone)
    }

    fn cut(&self, owned: Range<u32>, turns: &[&Turn]) -> MicroBatch {
        let num_context = self.tree.positions[owned.start as usize];
        let tree = self.computed(num_context, &owned);
        let local = |token: u32| match token.checked_sub(owned.start) {
            Some(behind) => num_context + behind,
            None => self.tree.positions[token as usize], // of the path above: one token a position
        };
        let Sorted { predictors, target_row, target_ids, logprobs, turn, in_call } =
            self.sorted_targets(&tree, turns, local);
        let credits = || turn.iter().zip(&in_call).map(|(&turn, &in_call)| turns[turn as usize].credit_of(in_call));
        let each = |of: fn(&Credit) -> f64| credits().map(of).collect();
        MicroBatch {
            num_context,
            segments: tree.segments(),
            gain: each(|credit| credit.gain),
            penalty: each(|credit| credit.penalty),
            weights: each(|credit| credit.weight),
            gain_weights: each(|credit| credit.gain_weight),
            penalty_weights: each(|credit| credit.penalty_weight),
            row: (!self.shared).then(|| turn.iter().map(|&turn| turns[turn as usize].row).collect()),
            tree,
            predictors,
            target_row,
            target_ids,
            logprobs,
            turn,
        }
    }

    /// The path above the first token that is owned, then the tokens owned.
    fn computed(&self, num_context: u32, owned: &Range<u32>) -> TokenTree {
        let mut tree = TokenTree::with_capacity(num_context as usize + owned.len());
        let first = self.tree.edge_start.partition_point(|&start| start < owned.start);
        let behind = self.tree.edge_start.partition_point(|&start| start < owned.end);
        let mut path = vec![];
        let mut above = self.tree.edge_parent[first];
        while above != NO_PARENT {
            path.push(above as usize);
            above = self.tree.edge_parent[above as usize];
        }
        for edge in path.into_iter().rev().chain(first..behind) {
            let tokens = self.tree.edge(edge);
            let subtree_end = self.tree.subtree_end[tokens.start].min(owned.end);
            tree.push(&self.tree.token_ids[tokens], num_context + subtree_end - owned.start);
        }
        tree
    }

    /// A counting sort; `local` says where a token of the layout stands in `tree`.
    fn sorted_targets(&self, tree: &TokenTree, turns: &[&Turn], local: impl Fn(u32) -> u32) -> Sorted {
        let mut next = vec![0u32; tree.token_ids.len()];
        for &token in turns.iter().flat_map(|turn| &self.target_token[turn.targets.clone()]) {
            next[tree.parent_token[local(token) as usize] as usize] += 1;
        }
        let mut sorted = Sorted::of_counts(&mut next);
        for (turn, number) in turns.iter().zip(0..) {
            for target in turn.targets.clone() {
                let token = local(self.target_token[target]) as usize;
                let next = &mut next[tree.parent_token[token] as usize];
                let place = *next as usize;
                *next += 1;
                sorted.target_ids[place] = tree.token_ids[token];
                sorted.logprobs[place] = self.target_logprob[target];
                sorted.in_call[place] = self.target_in_call[target];
                sorted.turn[place] = number;
            }
        }
        sorted
    }
}

/// Targets by predictor, then turn; see [`MicroBatch`].
struct Sorted {
    predictors: Vec<u32>,
    target_row: Vec<u32>,
    target_ids: Vec<u32>,
    logprobs: Vec<f32>,
    turn: Vec<u32>,
    in_call: Vec<bool>,
}

impl Sorted {
    /// Turns the number of targets of each token into the place of its first one; leaves the targets blank.
    fn of_counts(counts: &mut [u32]) -> Self {
        let num_targets = counts.iter().map(|&count| count as usize).sum();
        let (mut predictors, mut target_row) = (vec![], Vec::with_capacity(num_targets));
        for (count, predictor) in counts.iter_mut().zip(0..) {
            let start = target_row.len() as u32;
            if *count > 0 {
                target_row.extend(std::iter::repeat_n(predictors.len() as u32, *count as usize));
                predictors.push(predictor);
            }
            *count = start;
        }
        let (target_ids, logprobs, turn) = (vec![0; num_targets], vec![0.0; num_targets], vec![0; num_targets]);
        Self { predictors, target_row, target_ids, logprobs, turn, in_call: vec![false; num_targets] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::score;
    use crate::credit::Weighing;
    use crate::pack::pack;
    use crate::rows::tests::forked;

    fn micro_batches(shared: bool, max_tokens: usize) -> Vec<MicroBatch> {
        let forest = forked();
        let scores = score(&forest, "parent", &[]).unwrap();
        pack(&forest, &scores, Weighing::default(), shared, None).unwrap().micro_batches(max_tokens).unwrap()
    }

    #[test]
    fn a_path_above_a_cut_is_computed_again_and_not_trained_again() {
        let [first, second] = micro_batches(true, 5).try_into().unwrap();
        assert_eq!((first.num_context, &first.tree.token_ids[..]), (0, &[1, 2, 3, 4, 5][..]));
        assert_eq!((second.num_context, &second.tree.token_ids[..]), (3, &[1, 2, 3, 6, 7][..]));
        assert_eq!((first.target_ids, second.target_ids), (vec![2, 4], vec![6]));
        assert_eq!((first.predictors, second.predictors), (vec![0, 2], vec![2]));
        assert_eq!(second.tree.edge_start, [0, 5]);
    }

    #[test]
    fn a_branching_token_predicts_several_targets() {
        let [whole] = micro_batches(true, 7).try_into().unwrap();
        assert_eq!(whole.predictors, [0, 2]);
        assert_eq!((whole.target_row, whole.target_ids), (vec![0, 1, 1], vec![2, 4, 6]));
        assert_eq!((whole.turn, whole.row), (vec![0, 1, 2], None));
        assert_eq!((whole.gain, whole.penalty), (vec![0.0, 0.5, 0.0], vec![0.0, 0.0, -0.5]));
        assert_eq!(whole.weights, [2.0, 1.0, 1.0]);
    }

    #[test]
    fn rows_count_with_their_padding() {
        assert_eq!(micro_batches(false, 9).len(), 2);
        let [both] = micro_batches(false, 10).try_into().unwrap();
        assert_eq!(both.tree.run_start, [0, 5, 10]);
        assert_eq!((both.row, both.segments), (Some(vec![0, 0, 1, 1]), Segments::default()));
    }

    #[test]
    fn no_tokens_at_all_are_no_limit() {
        let forest = forked();
        let layout =
            pack(&forest, &score(&forest, "grpo", &[]).unwrap(), Weighing::default(), true, Some(&[])).unwrap();
        assert!(matches!(layout.micro_batches(0), Err(Error::OptionValue { .. })));
        assert!(layout.micro_batches(1).unwrap().is_empty());
    }
}
