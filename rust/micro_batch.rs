//! Layout -> micro-batches: what one forward computes, at most so many tokens where paths allow it.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::layout::{Layout, Turn};
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
        let mut tree = TokenTree::with_capacity(num_context as usize + owned.len());
        let first = self.tree.edge_start.partition_point(|&start| start < owned.start);
        let behind = self.tree.edge_start.partition_point(|&start| start < owned.end);
        for edge in self.edges_above(first).into_iter().rev().chain(first..behind) {
            let tokens = self.tree.edge(edge);
            let subtree_end = self.tree.subtree_end[tokens.start].min(owned.end);
            tree.push(&self.tree.token_ids[tokens], num_context + subtree_end - owned.start);
        }
        let segments = tree.segments();
        let mut batch = MicroBatch { segments, ..MicroBatch::without_targets(num_context, tree) };
        batch.set_targets(self, owned.start, turns);
        batch
    }

    /// Edges from the parent of `edge` up to its start.
    fn edges_above(&self, edge: usize) -> Vec<usize> {
        let above = |&edge: &usize| self.tree.edge_parent.get(edge).map(|&parent| parent as usize);
        let is_edge = |edge: &usize| *edge < self.tree.edge_parent.len();
        std::iter::successors(above(&edge).filter(is_edge), |edge| above(edge).filter(is_edge)).collect()
    }
}

impl MicroBatch {
    fn without_targets(num_context: u32, tree: TokenTree) -> Self {
        Self {
            num_context,
            tree,
            segments: Segments::default(),
            predictors: vec![],
            target_row: vec![],
            target_ids: vec![],
            logprobs: vec![],
            gain: vec![],
            penalty: vec![],
            weights: vec![],
            turn: vec![],
            row: None,
        }
    }

    /// Fills the columns over targets, sorted by predictor, then turn: a counting sort.
    fn set_targets(&mut self, layout: &Layout, first: u32, turns: &[&Turn]) {
        let local = |&token: &u32| match token.checked_sub(first) {
            Some(behind) => (self.num_context + behind) as usize,
            None => layout.tree.positions[token as usize] as usize, // of the path above: one token a position
        };
        let tokens_of = |turn: &Turn| layout.target_token[turn.targets.clone()].iter().map(local);
        let mut next = vec![0u32; self.tree.token_ids.len()];
        for token in turns.iter().flat_map(|turn| tokens_of(turn)) {
            next[self.tree.parent_token[token] as usize] += 1;
        }
        let mut num_targets = 0;
        for (count, predictor) in next.iter_mut().zip(0..) {
            if *count > 0 {
                self.target_row.resize((num_targets + *count) as usize, self.predictors.len() as u32);
                self.predictors.push(predictor);
            }
            (*count, num_targets) = (num_targets, num_targets + *count);
        }
        let num = num_targets as usize;
        let mut row = vec![0; if layout.shared { 0 } else { num }];
        (self.target_ids, self.logprobs, self.turn) = (vec![0; num], vec![0.0; num], vec![0; num]);
        (self.gain, self.penalty, self.weights) = (vec![0.0; num], vec![0.0; num], vec![0.0; num]);
        for (turn, number) in turns.iter().zip(0..) {
            for (&token, &logprob) in
                layout.target_token[turn.targets.clone()].iter().zip(&layout.target_logprob[turn.targets.clone()])
            {
                let token = local(&token);
                let place = &mut next[self.tree.parent_token[token] as usize];
                let at = *place as usize;
                *place += 1;
                self.target_ids[at] = self.tree.token_ids[token];
                self.logprobs[at] = logprob;
                self.turn[at] = number;
                self.gain[at] = turn.credit.gain;
                self.penalty[at] = turn.credit.penalty;
                self.weights[at] = turn.credit.weight;
                if !layout.shared {
                    row[at] = turn.row;
                }
            }
        }
        self.row = (!layout.shared).then_some(row);
    }
}
