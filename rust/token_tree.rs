//! Tokens in depth-first order -> columns over tokens, runs and edges.

use crate::forest::NO_PARENT;

/// Tokens in depth-first order, each once; a token sees exactly those on its path, itself included.
///
/// Token k is on the path of q where `k <= q < subtree_end[k]`. Columns over tokens: `token_ids`, `positions` (the
/// number of tokens above), `parent_token` (`NO_PARENT` at a start), `subtree_end` (first index behind the tokens below).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTree {
    pub token_ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub parent_token: Vec<u32>,
    pub subtree_end: Vec<u32>,
    /// Run r is `run_start[r]..run_start[r + 1]`: maximal, each token's parent is the one in front of it.
    pub run_start: Vec<u32>,
    /// Edge e is `edge_start[e]..edge_start[e + 1]`: maximal, without a branch. Edges lie in depth-first order.
    pub edge_start: Vec<u32>,
    /// The edge whose last token is the parent of this edge's first; `NO_PARENT` at a start.
    pub edge_parent: Vec<u32>,
    /// Edges from a start down to the last token.
    open: Vec<u32>,
}

/// What runs show to later ones: all keys `key_start..key_end` are seen by all queries `query_start..query_end`.
///
/// Beside them every run sees itself causally; both together are the path of each token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Segments {
    pub key_start: Vec<u32>,
    pub key_end: Vec<u32>,
    pub query_start: Vec<u32>,
    pub query_end: Vec<u32>,
}

impl TokenTree {
    /// No tokens yet, room for `num_tokens`.
    pub fn with_capacity(num_tokens: usize) -> Self {
        Self {
            token_ids: Vec::with_capacity(num_tokens),
            positions: Vec::with_capacity(num_tokens),
            parent_token: Vec::with_capacity(num_tokens),
            subtree_end: Vec::with_capacity(num_tokens),
            run_start: vec![0],
            edge_start: vec![0],
            edge_parent: vec![],
            open: vec![],
        }
    }

    /// Tokens so far.
    pub fn num_tokens(&self) -> u32 {
        self.token_ids.len() as u32
    }

    /// Where the tokens of an edge stand.
    pub fn edge(&self, edge: usize) -> std::ops::Range<usize> {
        self.edge_start[edge] as usize..self.edge_start[edge + 1] as usize
    }

    /// Appends tokens that all have this `subtree_end`, below the last token whose subtree is still open.
    pub fn push(&mut self, token_ids: &[u32], subtree_end: u32) {
        if token_ids.is_empty() {
            return;
        }
        let start = self.num_tokens();
        let end = start + token_ids.len() as u32;
        while self.open.last().is_some_and(|&edge| self.subtree_end[self.edge_start[edge as usize] as usize] <= start) {
            self.open.pop();
        }
        let edge = self.open.last().copied();
        let parent = edge.map(|edge| self.edge_start[edge as usize + 1] - 1);
        let follows = parent.is_some_and(|parent| parent + 1 == start);
        let branches = parent.is_none_or(|parent| self.subtree_end[parent as usize] != subtree_end);
        extend(&mut self.run_start, end, !follows);
        if extend(&mut self.edge_start, end, !follows || branches) {
            self.open.push(self.edge_parent.len() as u32);
            self.edge_parent.push(edge.unwrap_or(NO_PARENT));
        }
        let position = parent.map_or(0, |parent| self.positions[parent as usize] + 1);
        self.token_ids.extend_from_slice(token_ids);
        self.positions.extend(position..position + (end - start));
        self.parent_token.push(parent.unwrap_or(NO_PARENT));
        self.parent_token.extend(start..end - 1);
        self.subtree_end.resize(end as usize, subtree_end);
    }

    /// The keys that later runs see: every edge but the last of its run.
    pub fn segments(&self) -> Segments {
        let mut segments = Segments::default();
        let mut edge = 0;
        for run_end in self.run_start.iter().skip(1).copied() {
            while self.edge_start[edge + 1] < run_end {
                segments.key_start.push(self.edge_start[edge]);
                segments.key_end.push(self.edge_start[edge + 1]);
                segments.query_start.push(run_end);
                segments.query_end.push(self.subtree_end[self.edge_start[edge] as usize]);
                edge += 1;
            }
            edge += 1; // what is below the last edge of a run is in the run
        }
        segments
    }
}

/// Moves the last boundary of `starts` to `end`, or adds one where something new begins; returns whether it did.
fn extend(starts: &mut Vec<u32>, end: u32, begins: bool) -> bool {
    match starts.last_mut() {
        Some(last) if !begins => *last = end,
        _ => starts.push(end),
    }
    begins
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 2 → (3, 4 → 5), then a start 6.
    fn forked() -> TokenTree {
        let mut tree = TokenTree::with_capacity(6);
        for (token_ids, subtree_end) in [(&[1, 2][..], 5), (&[3], 3), (&[], 9), (&[4], 5), (&[5], 5), (&[6], 6)] {
            tree.push(token_ids, subtree_end);
        }
        tree
    }

    #[test]
    fn tokens_continue_what_is_open() {
        let tree = forked();
        assert_eq!(tree.token_ids, [1, 2, 3, 4, 5, 6]);
        assert_eq!(tree.positions, [0, 1, 2, 2, 3, 0]);
        assert_eq!(tree.parent_token, [NO_PARENT, 0, 1, 1, 3, NO_PARENT]);
        assert_eq!(tree.subtree_end, [5, 5, 3, 5, 5, 6]);
    }

    #[test]
    fn runs_end_at_a_jump_and_edges_at_a_branch_too() {
        let tree = forked();
        assert_eq!(tree.run_start, [0, 3, 5, 6]);
        assert_eq!(tree.edge_start, [0, 2, 3, 5, 6]);
        assert_eq!(tree.edge_parent, [NO_PARENT, 0, 0, NO_PARENT]);
        let (key_start, key_end, query_start, query_end) = (vec![0], vec![2], vec![3], vec![5]);
        assert_eq!(tree.segments(), Segments { key_start, key_end, query_start, query_end });
    }

    #[test]
    fn nothing_is_in_an_empty_tree() {
        let tree = TokenTree::with_capacity(0);
        assert_eq!((tree.num_tokens(), &tree.run_start[..], &tree.edge_start[..]), (0, &[0][..], &[0][..]));
        assert_eq!(tree.segments(), Segments::default());
    }
}
