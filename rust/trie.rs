//! Token sequences -> a path-compressed trie -> depth-first order.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::token_tree::TokenTree;

/// Sequences that begin with the same tokens share them. Tokens are numbered in the order in which they are made.
///
/// A run is a chain of tokens with consecutive numbers; it never splits: a sequence that leaves it in the middle
/// hangs its own run there. So a run is compared and copied as one slice, and numbers stay valid.
#[derive(Debug, Clone)]
pub struct Trie {
    token_ids: Vec<u32>,
    /// The first is empty: what every start hangs below.
    runs: Vec<Run>,
    /// (number behind the token above, first token) -> the run that hangs there.
    branches: HashMap<(u32, u32), u32>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    end: u32,
    /// The run that this one hangs on, and behind which of its tokens.
    above: u32,
    after: u32,
}

/// A token of a trie, or the place above all starts: its run, and the number behind it.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    run: u32,
    next: u32,
}

impl Place {
    /// The number behind the token, which no other place has; 0 above all starts.
    pub fn number(self) -> u32 {
        self.next
    }
}

/// Above all starts.
pub const TOP: Place = Place { run: 0, next: 0 };

/// Consecutive tokens of one run.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    run: u32,
    start: u32,
    pub num_tokens: u32,
}

/// Where each run of a trie begins in depth-first order.
#[derive(Debug, Clone)]
pub struct Order {
    /// Depth-first index minus number; wraps.
    shift: Vec<u32>,
}

impl Order {
    /// Depth-first index of a span's first token.
    pub fn index(&self, span: Span) -> u32 {
        span.start.wrapping_add(self.shift[span.run as usize])
    }
}

impl Trie {
    /// An empty trie with room for `num_tokens`.
    pub fn with_capacity(num_tokens: usize) -> Self {
        let top = Run { start: 0, end: 0, above: 0, after: 0 };
        Self { token_ids: Vec::with_capacity(num_tokens), runs: vec![top], branches: HashMap::new() }
    }

    /// Puts tokens below a place, on tokens that are there already as far as they are equal; adds where they stand.
    pub fn add(&mut self, mut at: Place, mut token_ids: &[u32], spans: &mut Vec<Span>) -> Place {
        loop {
            let ahead = &self.token_ids[at.next as usize..self.runs[at.run as usize].end as usize];
            let equal = common_prefix(ahead, token_ids) as u32;
            if equal > 0 {
                spans.push(Span { run: at.run, start: at.next, num_tokens: equal });
                at.next += equal;
                token_ids = &token_ids[equal as usize..];
            }
            let Some(&first) = token_ids.first() else { return at };
            match self.branches.get(&(at.next, first)) {
                Some(&run) => at = Place { run, next: self.runs[run as usize].start },
                None => {
                    let end = self.append(at, token_ids, spans);
                    if end.run != at.run {
                        self.branches.insert((at.next, first), end.run);
                    }
                    return end;
                }
            }
        }
    }

    /// Puts new tokens below a place, whatever is there already.
    pub fn append(&mut self, at: Place, token_ids: &[u32], spans: &mut Vec<Span>) -> Place {
        if token_ids.is_empty() {
            return at;
        }
        let start = self.token_ids.len() as u32;
        let end = start + token_ids.len() as u32;
        self.token_ids.extend_from_slice(token_ids);
        let mut run = at.run;
        if run != TOP.run && at.next == start {
            self.runs[run as usize].end = end;
        } else {
            run = self.runs.len() as u32;
            self.runs.push(Run { start, end, above: at.run, after: at.next });
        }
        spans.push(Span { run, start, num_tokens: end - start });
        Place { run, next: end }
    }

    /// Lays the tokens out depth first, the children of a token in the order in which they were made.
    ///
    /// Children of a run's later tokens come before those of its earlier ones, and its own next token is older than
    /// whatever hangs beside it: each run is one piece of the order.
    pub fn flatten(&self) -> (TokenTree, Order) {
        let size = self.subtree_tokens();
        let branches = self.sorted_branches();
        let mut tree = TokenTree::with_capacity(self.token_ids.len());
        let mut shift = vec![0; self.runs.len()];
        let mut waiting = vec![TOP.run];
        while let Some(number) = waiting.pop() {
            let run = self.runs[number as usize];
            shift[number as usize] = tree.num_tokens().wrapping_sub(run.start);
            let mut end = tree.num_tokens() + size[number as usize];
            let mut start = run.start;
            let first = branches.partition_point(|&(above, ..)| above < number);
            for &(_, after, Reverse(child)) in branches[first..].iter().take_while(|&&(above, ..)| above == number) {
                tree.push(&self.token_ids[start as usize..after as usize], end);
                end -= size[child as usize];
                start = after;
                waiting.push(child);
            }
            tree.push(&self.token_ids[start as usize..run.end as usize], end);
        }
        (tree, Order { shift })
    }

    /// Tokens of each run and of all below it: a run is older than what hangs on it.
    fn subtree_tokens(&self) -> Vec<u32> {
        let mut size: Vec<u32> = self.runs.iter().map(|run| run.end - run.start).collect();
        for (number, run) in self.runs.iter().enumerate().skip(1).rev() {
            size[run.above as usize] += size[number];
        }
        size
    }

    /// (run, number behind the token, child): what is put on a stack in this order comes off as it shall be visited.
    fn sorted_branches(&self) -> Vec<(u32, u32, Reverse<u32>)> {
        let numbered = self.runs.iter().zip(0..).skip(1);
        let mut branches: Vec<_> = numbered.map(|(s, number)| (s.above, s.after, Reverse(number))).collect();
        branches.sort_unstable();
        branches
    }
}

/// How many tokens two slices have in common at their beginnings.
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    const AT_ONCE: usize = 16;
    let chunks = a.chunks_exact(AT_ONCE).zip(b.chunks_exact(AT_ONCE));
    let equal = AT_ONCE * chunks.take_while(|(a, b)| a == b).count();
    equal + a[equal..].iter().zip(&b[equal..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::NO_PARENT;

    /// The depth-first order of these sequences, and the indices of the last one's tokens.
    fn flat(sequences: &[&[u32]]) -> (TokenTree, Vec<u32>) {
        let mut trie = Trie::with_capacity(0);
        let mut spans = vec![];
        for sequence in sequences {
            spans.clear();
            trie.add(TOP, sequence, &mut spans);
        }
        let (tree, order) = trie.flatten();
        let indices = spans.iter().flat_map(|&span| order.index(span)..order.index(span) + span.num_tokens);
        (tree, indices.collect())
    }

    #[test]
    fn a_sequence_leaves_a_run_in_its_middle() {
        let (tree, last) = flat(&[&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 5, 6], &[1, 2, 3, 7]]);
        assert_eq!(tree.token_ids, [1, 2, 3, 4, 7, 5, 6]);
        assert_eq!(tree.parent_token, [NO_PARENT, 0, 1, 2, 2, 1, 5]);
        assert_eq!(tree.subtree_end, [7, 7, 5, 4, 5, 7, 7]);
        assert_eq!(last, [0, 1, 2, 4]);
    }

    #[test]
    fn children_keep_the_order_in_which_they_were_made() {
        let (tree, _) = flat(&[&[1, 9], &[2], &[1, 8], &[1, 7], &[2, 6], &[1, 8, 5]]);
        assert_eq!(tree.token_ids, [1, 9, 8, 5, 7, 2, 6]);
        assert_eq!(tree.positions, [0, 1, 1, 2, 1, 0, 1]);
    }

    #[test]
    fn a_place_stays_valid_when_others_branch_there() {
        let (mut trie, mut spans) = (Trie::with_capacity(8), vec![]);
        let turn = trie.add(TOP, &[1, 2], &mut spans);
        trie.add(TOP, &[1, 2, 3, 4], &mut spans);
        trie.add(TOP, &[1, 5], &mut spans);
        spans.clear();
        trie.add(turn, &[3, 6], &mut spans);
        let (tree, order) = trie.flatten();
        assert_eq!(tree.token_ids, [1, 2, 3, 4, 6, 5]);
        assert_eq!(spans.iter().map(|&span| order.index(span)).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn appended_sequences_share_nothing() {
        let (mut trie, mut spans) = (Trie::with_capacity(4), vec![]);
        for _ in 0..2 {
            let turn = trie.append(TOP, &[1], &mut spans);
            trie.append(turn, &[2], &mut spans);
        }
        let (tree, _) = trie.flatten();
        assert_eq!(tree.token_ids, [1, 2, 1, 2]);
        assert_eq!(tree.run_start, [0, 2, 4]);
    }

    #[test]
    fn prefixes_are_compared_to_the_token() {
        let long: Vec<u32> = (0..100).collect();
        for differs in [0, 1, 15, 16, 17, 99] {
            let mut other = long.clone();
            other[differs] = 100;
            assert_eq!(common_prefix(&long, &other), differs);
            assert_eq!(common_prefix(&long[..differs], &long), differs);
        }
    }
}
