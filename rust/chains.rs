//! Plain rows -> trees: the rows of a prompt share the tokens with which they begin alike.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::forest::{
    DONE, ERROR, Forest, NO_PARENT, OPEN, TRUNCATED_TOKENS, Tokens, check_length, check_offsets, row_id,
};

/// Rows of tokens, each one whole rollout: row b is `row_start[b]..row_start[b + 1]` of the token columns.
#[derive(Debug, Clone, Copy)]
pub struct Chains<'a> {
    pub row_start: &'a [u64],
    pub token_ids: &'a [u32],
    /// True where the policy sampled the token.
    pub sampled: &'a [bool],
    /// Nats, 0 where not sampled.
    pub logprobs: &'a [f32],
    /// Per row: its group, its reward (NaN = none), how it ended, and the weights that sampled it.
    pub prompt: &'a [u32],
    pub reward: &'a [f64],
    pub status: &'a [u8],
    pub policy_version: &'a [u32],
}

impl Forest {
    /// Merges the rows of each prompt into one tree; returns the forest and the leaf of each row.
    ///
    /// The root holds what all rows of the prompt have in common before anything was sampled. Below it rows go together
    /// while their tokens are equal, sampled or not in both, and, where sampled, of one policy version and with
    /// log-probabilities no further apart than `logprob_tolerance` (nats); the first row's stand. A node ends where rows
    /// part and where a turn ends. A row that ends where another goes on, or as another one ends, has a leaf without
    /// tokens. Trees come in the order of their prompts' first rows, a tree's leaves in the order of its rows.
    pub fn from_chains(chains: &Chains, logprob_tolerance: f64) -> Result<(Self, Vec<u32>)> {
        chains.check(logprob_tolerance)?;
        let mut forest = Self::new();
        forest.knows_rounds = false;
        let mut leaf = vec![NO_PARENT; chains.num_rows()];
        for rows in chains.rows_by_prompt() {
            let mut trunk = Trunk::new(*chains, logprob_tolerance as f32, &rows);
            let ends: Vec<u32> = rows.iter().map(|&row| trunk.insert(row)).collect();
            let root = chains.range_of(rows[0]).start..chains.range_of(rows[0]).start + trunk.root_tokens;
            trunk.edges[0].last_node = forest.add_tree(chains.prompt[rows[0] as usize], &chains.token_ids[root])?;
            for (&row, &edge) in rows.iter().zip(&ends) {
                leaf[row as usize] = trunk.plant(&mut forest, row, edge)?;
            }
        }
        Ok((forest, leaf))
    }
}

impl Chains<'_> {
    fn num_rows(&self) -> usize {
        self.prompt.len()
    }

    fn check(&self, logprob_tolerance: f64) -> Result<()> {
        let (num_rows, num_tokens) = (self.num_rows(), self.token_ids.len());
        row_id(num_rows, "rows")?;
        check_length("reward", self.reward.len(), num_rows)?;
        check_length("status", self.status.len(), num_rows)?;
        check_length("policy_version", self.policy_version.len(), num_rows)?;
        check_length("row_start", self.row_start.len(), num_rows + 1)?;
        check_offsets("row", "row_start", self.row_start, num_tokens)?;
        check_length("sampled", self.sampled.len(), num_tokens)?;
        check_length("logprobs", self.logprobs.len(), num_tokens)?;
        if logprob_tolerance.is_nan() || logprob_tolerance < 0.0 {
            let (got, expected) = (logprob_tolerance.to_string(), "a number, 0 or more".to_owned());
            return Err(Error::OptionValue { name: "logprob_tolerance".to_owned(), got, expected });
        }
        for (row, (&status, &reward)) in self.status.iter().zip(self.reward).enumerate() {
            let last = if reward.is_nan() { ERROR } else { TRUNCATED_TOKENS };
            if !(DONE..=last).contains(&status) {
                return Err(Error::Row { row, fault: Fault::NotClosed(status) });
            }
            if reward.is_infinite() {
                return Err(Error::Row { row, fault: Fault::RewardNotFinite(reward) });
            }
        }
        Ok(())
    }

    fn range_of(&self, row: u32) -> Range<usize> {
        self.row_start[row as usize] as usize..self.row_start[row as usize + 1] as usize
    }

    /// The rows of each prompt, prompts in the order in which they first come.
    fn rows_by_prompt(&self) -> Vec<Vec<u32>> {
        let mut number = HashMap::new();
        let mut rows: Vec<Vec<u32>> = vec![];
        for (row, &prompt) in (0..).zip(self.prompt) {
            let of = *number.entry(prompt).or_insert(rows.len());
            if of == rows.len() {
                rows.push(vec![]);
            }
            rows[of].push(row);
        }
        rows
    }

    /// Tokens in front of the first sampled one.
    fn unsampled(&self, row: u32) -> usize {
        let sampled = &self.sampled[self.range_of(row)];
        sampled.iter().position(|&sampled| sampled).unwrap_or(sampled.len())
    }
}

/// The rows of one prompt, path-compressed: edges are pieces of the rows that brought them.
struct Trunk<'a> {
    chains: Chains<'a>,
    logprob_tolerance: f32,
    root_tokens: usize,
    /// The first is the root.
    edges: Vec<Edge>,
    /// (edge above, first token, whether it is sampled) -> the edges that begin so; they differ otherwise.
    below: HashMap<(u32, u32, bool), Vec<u32>>,
}

#[derive(Debug, Clone)]
struct Edge {
    above: u32,
    row: u32,
    tokens: Range<usize>,
    /// Rows that end with it, and whether others go on.
    num_ends: u32,
    has_edge_below: bool,
    /// In the forest; `NO_PARENT` until it is planted.
    last_node: u32,
}

impl Edge {
    fn new(above: u32, row: u32, tokens: Range<usize>) -> Self {
        Self { above, row, tokens, num_ends: 0, has_edge_below: false, last_node: NO_PARENT }
    }
}

impl<'a> Trunk<'a> {
    fn new(chains: Chains<'a>, logprob_tolerance: f32, rows: &[u32]) -> Self {
        let first = &chains.token_ids[chains.range_of(rows[0])][..chains.unsampled(rows[0])];
        let in_common = |root_tokens: usize, &row: &u32| {
            let tokens = &chains.token_ids[chains.range_of(row)][..chains.unsampled(row)];
            first[..root_tokens].iter().zip(tokens).take_while(|(a, b)| a == b).count()
        };
        let root_tokens = rows.iter().fold(first.len(), in_common);
        let edges = vec![Edge::new(NO_PARENT, rows[0], 0..0)];
        Self { chains, logprob_tolerance, root_tokens, edges, below: HashMap::new() }
    }

    /// Adds what is new of a row; returns the edge with which it ends.
    fn insert(&mut self, row: u32) -> u32 {
        let Range { start, end } = self.chains.range_of(row);
        let (mut at, mut token) = (0, start + self.root_tokens);
        while token < end {
            let Some((edge, equal)) = self.next(at, row, token..end) else {
                at = self.add(at, row, token..end);
                break;
            };
            at = if equal < self.edges[edge as usize].tokens.len() { self.split(edge, equal) } else { edge };
            token += equal;
        }
        self.edges[at as usize].num_ends += 1;
        // a split gives the upper part a new number: it may be the end of rows that come later, never of earlier ones
        at
    }

    fn key(&self, above: u32, token: usize) -> (u32, u32, bool) {
        (above, self.chains.token_ids[token], self.chains.sampled[token])
    }

    /// The first edge below `at` that begins as these tokens of the row do, and how many of them it has.
    fn next(&self, at: u32, row: u32, tokens: Range<usize>) -> Option<(u32, usize)> {
        let edges = self.below.get(&self.key(at, tokens.start))?;
        let equal = edges.iter().map(|&edge| (edge, self.equal(edge, row, tokens.clone())));
        equal.into_iter().find(|&(_, equal)| equal > 0)
    }

    fn equal(&self, edge: u32, row: u32, tokens: Range<usize>) -> usize {
        let Chains { token_ids, sampled, logprobs, policy_version, .. } = self.chains;
        let edge = &self.edges[edge as usize];
        let same_policy = policy_version[edge.row as usize] == policy_version[row as usize];
        let near = |a: f32, b: f32| a == b || (a - b).abs() <= self.logprob_tolerance;
        let same = |&(a, b): &(usize, usize)| {
            let drawn_alike = |a: usize, b: usize| !sampled[a] || (same_policy && near(logprobs[a], logprobs[b]));
            token_ids[a] == token_ids[b] && sampled[a] == sampled[b] && drawn_alike(a, b)
        };
        edge.tokens.clone().zip(tokens).take_while(same).count()
    }

    fn add(&mut self, above: u32, row: u32, tokens: Range<usize>) -> u32 {
        let edge = self.edges.len() as u32;
        self.below.entry(self.key(above, tokens.start)).or_default().push(edge);
        self.edges[above as usize].has_edge_below = true;
        self.edges.push(Edge::new(above, row, tokens));
        edge
    }

    /// Cuts an edge behind its first tokens. The lower part keeps the number, and with it what ends or hangs there.
    fn split(&mut self, lower: u32, num_tokens: usize) -> u32 {
        let upper = self.edges.len() as u32;
        let Edge { above, row, tokens, .. } = self.edges[lower as usize].clone();
        let cut = tokens.start + num_tokens;
        let siblings = self.below.entry(self.key(above, tokens.start)).or_default();
        siblings.iter_mut().filter(|edge| **edge == lower).for_each(|edge| *edge = upper);
        self.below.insert(self.key(upper, cut), vec![lower]);
        self.edges.push(Edge { has_edge_below: true, ..Edge::new(above, row, tokens.start..cut) });
        let lower = &mut self.edges[lower as usize];
        (lower.above, lower.tokens.start) = (upper, cut);
        upper
    }

    /// Puts the nodes of a row that are not there yet into the forest; returns its leaf.
    fn plant(&mut self, forest: &mut Forest, row: u32, end: u32) -> Result<u32> {
        let mut path = vec![];
        let mut at = end;
        while self.edges[at as usize].last_node == NO_PARENT {
            path.push(at);
            at = self.edges[at as usize].above;
        }
        for edge in path.into_iter().rev() {
            self.plant_edge(forest, edge)?;
        }
        let Edge { last_node, num_ends, has_edge_below, .. } = self.edges[end as usize];
        let mut leaf = last_node;
        if end == 0 || num_ends > 1 || has_edge_below {
            let tokens = Tokens { token_ids: &[], sampled: &[], logprobs: &[] };
            let (status, version) = (self.chains.status[row as usize], self.chains.policy_version[row as usize]);
            leaf = forest.add_node(last_node, tokens, status, version)?;
        }
        let reward = self.chains.reward[row as usize];
        if !reward.is_nan() {
            forest.set_reward(leaf, reward)?;
        }
        Ok(leaf)
    }

    /// A node a turn; the last one is closed where it is the end of one row alone.
    fn plant_edge(&mut self, forest: &mut Forest, edge: u32) -> Result<()> {
        let Chains { token_ids, sampled, logprobs, status, policy_version, .. } = self.chains;
        let Edge { above, row, tokens, num_ends, has_edge_below, .. } = self.edges[edge as usize].clone();
        let is_leaf = num_ends == 1 && !has_edge_below;
        let mut node = self.edges[above as usize].last_node;
        let mut start = tokens.start;
        while start < tokens.end {
            let begins_turn = |&at: &usize| sampled[at] && !sampled[at - 1];
            let end = (start + 1..tokens.end).find(begins_turn).unwrap_or(tokens.end);
            let (token_ids, sampled, logprobs) = (&token_ids[start..end], &sampled[start..end], &logprobs[start..end]);
            let of_node = if is_leaf && end == tokens.end { status[row as usize] } else { OPEN };
            let turn = Tokens { token_ids, sampled, logprobs };
            node = forest.add_node(node, turn, of_node, policy_version[row as usize])?;
            start = end;
        }
        self.edges[edge as usize].last_node = node;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::score;
    use crate::credit::Weighing;
    use crate::pack::pack;

    /// Rows of (token, sampled) with log-probability −0.5 where sampled, all of prompt 0 and version 0.
    fn merged(rows: &[(&[(u32, bool)], f64)], change: impl Fn(&mut Owned)) -> Result<(Forest, Vec<u32>)> {
        let tokens: Vec<_> = rows.iter().flat_map(|(tokens, _)| tokens.iter().copied()).collect();
        let mut row_start = vec![0];
        for (tokens, _) in rows {
            row_start.push(row_start.last().unwrap() + tokens.len() as u64);
        }
        let mut owned = Owned {
            row_start,
            token_ids: tokens.iter().map(|&(token, _)| token).collect(),
            sampled: tokens.iter().map(|&(_, sampled)| sampled).collect(),
            logprobs: tokens.iter().map(|&(_, sampled)| if sampled { -0.5 } else { 0.0 }).collect(),
            prompt: vec![0; rows.len()],
            reward: rows.iter().map(|&(_, reward)| reward).collect(),
            status: vec![DONE; rows.len()],
            policy_version: vec![0; rows.len()],
            tolerance: 0.1,
        };
        change(&mut owned);
        let Owned { row_start, token_ids, sampled, logprobs, prompt, reward, status, policy_version, tolerance } =
            &owned;
        Forest::from_chains(
            &Chains { row_start, token_ids, sampled, logprobs, prompt, reward, status, policy_version },
            *tolerance,
        )
    }

    struct Owned {
        row_start: Vec<u64>,
        token_ids: Vec<u32>,
        sampled: Vec<bool>,
        logprobs: Vec<f32>,
        prompt: Vec<u32>,
        reward: Vec<f64>,
        status: Vec<u8>,
        policy_version: Vec<u32>,
        tolerance: f64,
    }

    const P: bool = false;
    const S: bool = true;

    #[test]
    fn rows_share_what_they_begin_with() {
        let first = [(1, P), (2, P), (3, S), (4, S), (9, P), (5, S)];
        let second = [(1, P), (2, P), (3, S), (4, S), (9, P), (6, S), (8, P)];
        let third = [(1, P), (2, P), (3, S), (7, S)];
        let (forest, leaf) = merged(&[(&first, 1.0), (&second, 0.0), (&third, 0.5)], |_| {}).unwrap();
        let nodes: Vec<_> = (0..forest.num_nodes()).map(|node| &forest.token_ids[forest.token_range(node)]).collect();
        assert_eq!(nodes, [&[1, 2][..], &[3], &[4, 9], &[5], &[6, 8], &[7]]);
        assert_eq!(forest.parent, [NO_PARENT, 0, 1, 2, 2, 1]);
        assert_eq!(leaf, [3, 4, 5]);
        let layout = pack(&forest, &score(&forest, "grpo", &[]).unwrap(), Weighing::default(), true, None).unwrap();
        assert_eq!(layout.tree.token_ids, [1, 2, 3, 4, 9, 5, 6, 8, 7]);
    }

    #[test]
    fn a_node_is_a_turn() {
        let row = [(1, P), (2, S), (3, P), (4, S), (5, S), (6, P)];
        let (forest, leaf) = merged(&[(&row, 1.0)], |_| {}).unwrap();
        assert_eq!((&forest.token_start[..], leaf), (&[0, 1, 3, 6][..], vec![2]));
        assert_eq!(forest.status, [OPEN, OPEN, DONE]);
    }

    #[test]
    fn a_row_that_another_goes_on_from_is_a_leaf_of_its_own() {
        let (short, long) = ([(1, P), (2, S)], [(1, P), (2, S), (3, P), (4, S)]);
        for rows in [[(&short[..], 1.0), (&long[..], 0.0)], [(&long[..], 0.0), (&short[..], 1.0)]] {
            let (forest, leaf) = merged(&rows, |_| {}).unwrap();
            assert_eq!(forest.num_tokens(), 4);
            let rewards: Vec<_> = leaf.iter().map(|&leaf| forest.reward[leaf as usize]).collect();
            assert_eq!(rewards, rows.map(|(_, reward)| reward));
            for (&leaf, (row, _)) in leaf.iter().zip(&rows) {
                assert_eq!(forest.context(leaf).unwrap(), row.iter().map(|&(token, _)| token).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn equal_rows_are_as_many_leaves() {
        let row = [(1, P), (2, S)];
        let (forest, leaf) = merged(&[(&row, 1.0), (&row, 0.0), (&row[..1], 0.5)], |_| {}).unwrap();
        assert_eq!((&forest.parent[..], leaf), (&[NO_PARENT, 0, 1, 1, 0][..], vec![2, 3, 4]));
    }

    #[test]
    fn rows_part_where_they_were_not_drawn_alike() {
        let row = [(1, P), (2, S), (3, S)];
        let num_nodes = |change: fn(&mut Owned)| merged(&[(&row, 1.0), (&row, 0.0)], change).unwrap().0.num_nodes();
        assert_eq!(num_nodes(|rows| rows.logprobs[5] = -0.55), 4);
        assert_eq!(num_nodes(|rows| rows.logprobs[5] = -0.7), 4);
        assert_eq!(num_nodes(|rows| rows.logprobs[4] = -0.7), 3);
        assert_eq!(num_nodes(|rows| (rows.logprobs[4], rows.tolerance) = (-0.7, f64::INFINITY)), 4);
        assert_eq!(num_nodes(|rows| rows.policy_version[1] = 1), 3);
        assert_eq!(num_nodes(|rows| rows.sampled[5] = false), 4);
        assert_eq!(num_nodes(|rows| rows.prompt[1] = 7), 4);
    }

    #[test]
    fn a_root_holds_what_no_row_sampled() {
        let rows: [(&[(u32, bool)], f64); 2] = [(&[(1, P), (2, P), (3, S)], 1.0), (&[(1, P), (2, S)], 0.0)];
        let (forest, _) = merged(&rows, |_| {}).unwrap();
        assert_eq!(forest.token_start, [0, 1, 2, 3, 4]);
        assert_eq!(merged(&[(&[], 1.0)], |_| {}).unwrap().0.token_start, [0, 0, 0]);
    }

    #[test]
    fn wrong_rows_are_named() {
        let row = [(1, P), (2, S)];
        let refused = |change: fn(&mut Owned)| merged(&[(&row, 1.0)], change).unwrap_err().to_string();
        assert_eq!(refused(|rows| rows.reward[0] = f64::INFINITY), "row 0: reward inf is not finite");
        assert!(refused(|rows| rows.status[0] = ERROR).starts_with("row 0: status code 5"));
        assert!(refused(|rows| rows.status[0] = OPEN).starts_with("row 0: status code 0"));
        assert_eq!(refused(|rows| rows.row_start[0] = 1), "row_start begins with 1, expected 0");
        assert_eq!(refused(|rows| rows.row_start[1] = 5), "token_ids has 2 entries, expected 5");
        assert!(refused(|rows| rows.tolerance = f64::NAN).starts_with("option logprob_tolerance: got NaN"));
        assert!(merged(&[(&row, f64::NAN)], |rows| rows.status[0] = ERROR).is_ok());
    }
}
