//! The tables: trees, nodes, tokens. Rows are appended, never edited or removed; a parent precedes its child.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Fault, Result};

/// The parent of a root.
pub const NO_PARENT: u32 = u32::MAX;
/// How a turn ended; the codes of `NodeStatus` in Python.
pub const OPEN: u8 = 0;
pub const DONE: u8 = 1;
pub const TRUNCATED_TURNS: u8 = 2;
pub const TRUNCATED_TOKENS: u8 = 3;
pub const PRUNED: u8 = 4;
pub const ERROR: u8 = 5;

/// Rollout trees as append-only columns.
///
/// Columns of `num_nodes` entries: `parent`, `tree`, `depth`, `status`, `reward` (NaN = none), `policy_version`,
/// `round` (in which a node was drawn; 0 = with its tree's first chain), `entropy` (mean over its sampled tokens) and
/// `confidence` (both NaN = not known) and `state_key` (of the environment's state before the turn, equal for equal
/// states; 0 = not known); `token_start` has one more. Columns of `num_tokens` entries: `token_ids`, `sampled`,
/// `tool_call` (whether it is part of a tool call), `logprobs` and `entropies` (nats; NaN = not known). `prompt` and
/// `root` have one entry a tree.
#[derive(Debug, Clone)]
pub struct Forest {
    pub prompt: Vec<u32>,
    pub root: Vec<u32>,
    pub parent: Vec<u32>,
    pub tree: Vec<u32>,
    pub depth: Vec<u32>,
    pub status: Vec<u8>,
    pub reward: Vec<f64>,
    pub policy_version: Vec<u32>,
    pub round: Vec<u32>,
    pub entropy: Vec<f64>,
    pub confidence: Vec<f64>,
    pub state_key: Vec<u64>,
    pub token_start: Vec<u64>,
    pub token_ids: Vec<u32>,
    pub sampled: Vec<bool>,
    pub tool_call: Vec<bool>,
    pub logprobs: Vec<f32>,
    pub entropies: Vec<f32>,
    /// Whether `round` says in which rounds the nodes were drawn, or nobody told.
    pub knows_rounds: bool,
    /// The same of `logprobs`.
    pub knows_logprobs: bool,
    /// The same of `tool_call`.
    pub knows_tool_calls: bool,
    pub(crate) has_child: Vec<bool>,
    stamp: Stamp,
}

/// Names what a forest holds: another one after every change, the same in copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

/// A whole batch of trees as borrowed columns; see [`Forest`] for their lengths. Absent columns get their defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Columns<'a> {
    pub prompt: &'a [u32],
    pub parent: &'a [u32],
    pub tree: &'a [u32],
    pub status: &'a [u8],
    pub reward: &'a [f64],
    pub policy_version: Option<&'a [u32]>,
    pub round: Option<&'a [u32]>,
    /// Where it is NaN or absent, the mean of the node's `entropies`.
    pub entropy: Option<&'a [f64]>,
    pub confidence: Option<&'a [f64]>,
    pub state_key: Option<&'a [u64]>,
    pub token_start: Option<&'a [u64]>,
    pub token_ids: Option<&'a [u32]>,
    pub sampled: Option<&'a [bool]>,
    pub tool_call: Option<&'a [bool]>,
    pub logprobs: Option<&'a [f32]>,
    pub entropies: Option<&'a [f32]>,
}

/// What a node adds to its parent's context: the turn that was sampled, then the observation.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    pub token_ids: &'a [u32],
    pub sampled: &'a [bool],
    pub logprobs: &'a [f32],
}

/// How a turn was drawn.
#[derive(Debug, Clone, Copy)]
pub struct Drawn<'a> {
    /// Of its tree's rounds of expansion; 0 = with the first chain. No smaller than its parent's.
    pub round: u32,
    /// Entropy of the distribution that each token was sampled from, nats; NaN where none was, or it is not known.
    pub entropies: Option<&'a [f32]>,
    /// Of the whole turn, in whatever measure the sampler has; NaN = not known.
    pub confidence: f64,
    /// Which of its sampled tokens are tool calls; none where that is not known.
    pub tool_call: Option<&'a [bool]>,
    /// Of the environment's state before it, equal for equal states; 0 = not known.
    pub state_key: u64,
}

impl Default for Drawn<'_> {
    fn default() -> Self {
        Self { round: 0, entropies: None, confidence: f64::NAN, tool_call: None, state_key: 0 }
    }
}

impl Default for Forest {
    fn default() -> Self {
        Self::new()
    }
}

impl Forest {
    /// An empty forest.
    pub fn new() -> Self {
        Self::with_capacity(0, 0, 0)
    }

    /// An empty forest with room for so many rows.
    pub(crate) fn with_capacity(num_trees: usize, num_nodes: usize, num_tokens: usize) -> Self {
        let mut token_start = Vec::with_capacity(num_nodes + 1);
        token_start.push(0);
        Self {
            prompt: Vec::with_capacity(num_trees),
            root: Vec::with_capacity(num_trees),
            parent: Vec::with_capacity(num_nodes),
            tree: Vec::with_capacity(num_nodes),
            depth: Vec::with_capacity(num_nodes),
            status: Vec::with_capacity(num_nodes),
            reward: Vec::with_capacity(num_nodes),
            policy_version: Vec::with_capacity(num_nodes),
            round: Vec::with_capacity(num_nodes),
            entropy: Vec::with_capacity(num_nodes),
            confidence: Vec::with_capacity(num_nodes),
            state_key: Vec::with_capacity(num_nodes),
            token_start,
            token_ids: Vec::with_capacity(num_tokens),
            sampled: Vec::with_capacity(num_tokens),
            tool_call: Vec::with_capacity(num_tokens),
            logprobs: Vec::with_capacity(num_tokens),
            entropies: Vec::with_capacity(num_tokens),
            knows_rounds: true,
            knows_logprobs: true,
            knows_tool_calls: true,
            has_child: Vec::with_capacity(num_nodes),
            stamp: Stamp::next(),
        }
    }

    /// What the forest holds, by name.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Trees planted, T.
    pub fn num_trees(&self) -> usize {
        self.prompt.len()
    }

    /// Nodes of all trees, N.
    pub fn num_nodes(&self) -> usize {
        self.parent.len()
    }

    /// Tokens of all nodes, U.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Plants a tree whose root holds the prompt's tokens; returns the root's node id.
    pub fn add_tree(&mut self, prompt: u32, token_ids: &[u32]) -> Result<u32> {
        let tree = row_id(self.num_trees(), "trees")?;
        let node = row_id(self.num_nodes(), "nodes")?;
        self.prompt.push(prompt);
        self.root.push(node);
        let count = token_ids.len();
        let tokens = Tokens { token_ids, sampled: &vec![false; count], logprobs: &vec![0.0; count] };
        self.push_node(NO_PARENT, tree, 0, OPEN, 0, tokens, Drawn::default());
        Ok(node)
    }

    /// Adds a turn of a first chain below an open node; returns its node id.
    pub fn add_node(&mut self, parent: u32, tokens: Tokens, status: u8, policy_version: u32) -> Result<u32> {
        self.add_drawn(parent, tokens, status, policy_version, Drawn::default())
    }

    /// Adds a turn below an open node, with what is known of how it was drawn; returns its node id.
    pub fn add_drawn(
        &mut self,
        parent: u32,
        tokens: Tokens,
        status: u8,
        policy_version: u32,
        drawn: Drawn,
    ) -> Result<u32> {
        self.check_node(parent)?;
        let node = row_id(self.num_nodes(), "nodes")?;
        let at = parent as usize;
        if self.status[at] != OPEN {
            return Err(Error::ClosedParent { parent });
        }
        if status > ERROR {
            return Err(Error::Status { node, status });
        }
        check_length("sampled", tokens.sampled.len(), tokens.token_ids.len())?;
        check_length("logprobs", tokens.logprobs.len(), tokens.token_ids.len())?;
        if let Some(tool_call) = drawn.tool_call {
            check_length("tool_call", tool_call.len(), tokens.token_ids.len())?;
            if !are_sampled(tool_call, tokens.sampled) {
                return Err(Error::At { tree: self.tree[at], node, fault: Fault::CallNotSampled });
            }
        }
        let entropies = drawn.entropies.unwrap_or_default();
        if drawn.entropies.is_some() {
            check_length("entropies", entropies.len(), tokens.token_ids.len())?;
        }
        let fault = |fault| Err(Error::At { tree: self.tree[at], node, fault });
        if let Some(&entropy) = entropies.iter().find(|entropy| entropy.is_infinite()) {
            return fault(Fault::EntropyNotFinite(entropy.into()));
        }
        if drawn.confidence.is_infinite() {
            return fault(Fault::ConfidenceNotFinite(drawn.confidence));
        }
        if drawn.round < self.round[at] {
            return fault(Fault::RoundBeforeParent { round: drawn.round, parent: self.round[at] });
        }
        self.has_child[at] = true;
        self.push_node(parent, self.tree[at], self.depth[at] + 1, status, policy_version, tokens, drawn);
        Ok(node)
    }

    #[expect(clippy::too_many_arguments, reason = "one a column")]
    fn push_node(
        &mut self,
        parent: u32,
        tree: u32,
        depth: u32,
        status: u8,
        policy_version: u32,
        tokens: Tokens,
        drawn: Drawn,
    ) {
        self.parent.push(parent);
        self.tree.push(tree);
        self.depth.push(depth);
        self.status.push(status);
        self.reward.push(f64::NAN);
        self.policy_version.push(policy_version);
        self.round.push(drawn.round);
        self.entropy.push(mean_sampled(drawn.entropies.unwrap_or_default(), tokens.sampled));
        self.confidence.push(drawn.confidence);
        self.state_key.push(drawn.state_key);
        self.has_child.push(false);
        self.token_ids.extend_from_slice(tokens.token_ids);
        self.sampled.extend_from_slice(tokens.sampled);
        self.logprobs.extend_from_slice(tokens.logprobs);
        match drawn.tool_call {
            Some(tool_call) => self.tool_call.extend_from_slice(tool_call),
            None => {
                self.tool_call.resize(self.token_ids.len(), false);
                self.knows_tool_calls &= !tokens.sampled.contains(&true);
            }
        }
        match drawn.entropies {
            Some(entropies) => self.entropies.extend_from_slice(entropies),
            None => self.entropies.resize(self.token_ids.len(), f32::NAN),
        }
        self.token_start.push(self.token_ids.len() as u64);
        self.stamp = Stamp::next();
    }

    /// Gives a closed leaf its outcome reward, once.
    pub fn set_reward(&mut self, node: u32, reward: f64) -> Result<()> {
        self.check_node(node)?;
        self.check_reward(node as usize, reward)?;
        if !self.reward[node as usize].is_nan() {
            return Err(self.refused(node as usize, "and it has one already"));
        }
        self.reward[node as usize] = reward;
        self.stamp = Stamp::next();
        Ok(())
    }

    /// Takes a whole batch of trees, and checks every invariant.
    pub fn from_columns(columns: Columns) -> Result<Self> {
        Self::copied(columns).linked()
    }

    /// Copies columns without a check; [`Forest::linked`] makes a forest of them.
    pub(crate) fn copied(columns: Columns) -> Self {
        let num_nodes = columns.parent.len();
        let token_ids = columns.token_ids.unwrap_or_default();
        Self {
            prompt: columns.prompt.to_vec(),
            root: vec![NO_PARENT; columns.prompt.len()],
            parent: columns.parent.to_vec(),
            tree: columns.tree.to_vec(),
            depth: vec![0; num_nodes],
            status: columns.status.to_vec(),
            reward: columns.reward.to_vec(),
            policy_version: or_filled(columns.policy_version, num_nodes, 0),
            round: or_filled(columns.round, num_nodes, 0),
            entropy: or_filled(columns.entropy, num_nodes, f64::NAN),
            confidence: or_filled(columns.confidence, num_nodes, f64::NAN),
            state_key: or_filled(columns.state_key, num_nodes, 0),
            token_start: columns.token_start.map_or_else(|| vec![0; num_nodes + 1], <[u64]>::to_vec),
            token_ids: token_ids.to_vec(),
            sampled: or_filled(columns.sampled, token_ids.len(), false),
            tool_call: or_filled(columns.tool_call, token_ids.len(), false),
            logprobs: or_filled(columns.logprobs, token_ids.len(), 0.0),
            entropies: or_filled(columns.entropies, token_ids.len(), f32::NAN),
            knows_rounds: columns.round.is_some(),
            knows_logprobs: columns.logprobs.is_some(),
            knows_tool_calls: columns.tool_call.is_some(),
            has_child: vec![false; num_nodes],
            stamp: Stamp::next(),
        }
    }

    /// Checks what `from_columns` was given and fills the columns that follow from it.
    pub(crate) fn linked(mut self) -> Result<Self> {
        row_id(self.num_nodes(), "nodes")?;
        row_id(self.num_trees(), "trees")?;
        check_length("tree", self.tree.len(), self.num_nodes())?;
        check_length("status", self.status.len(), self.num_nodes())?;
        check_length("reward", self.reward.len(), self.num_nodes())?;
        check_length("policy_version", self.policy_version.len(), self.num_nodes())?;
        check_length("round", self.round.len(), self.num_nodes())?;
        check_length("entropy", self.entropy.len(), self.num_nodes())?;
        check_length("confidence", self.confidence.len(), self.num_nodes())?;
        check_length("state_key", self.state_key.len(), self.num_nodes())?;
        check_length("token_start", self.token_start.len(), self.num_nodes() + 1)?;
        check_length("sampled", self.sampled.len(), self.num_tokens())?;
        check_length("tool_call", self.tool_call.len(), self.num_tokens())?;
        check_length("logprobs", self.logprobs.len(), self.num_tokens())?;
        check_length("entropies", self.entropies.len(), self.num_tokens())?;
        self.check_offsets()?;
        for node in 0..self.num_nodes() {
            self.link(node)?;
        }
        if let Some(tree) = self.root.iter().position(|&root| root == NO_PARENT) {
            return Err(Error::NoRoot { tree: tree as u32 });
        }
        for node in 0..self.num_nodes() {
            if !self.reward[node].is_nan() {
                self.check_reward(node, self.reward[node])?;
            }
            self.fill_entropy(node)?;
            let tokens = self.token_range(node);
            if !are_sampled(&self.tool_call[tokens.clone()], &self.sampled[tokens]) {
                return Err(self.fault(node, Fault::CallNotSampled));
            }
        }
        Ok(self)
    }

    /// Checks what is known of a node's distributions; its mean follows from its tokens' where it was not given.
    fn fill_entropy(&mut self, node: usize) -> Result<()> {
        let tokens = self.token_range(node);
        let entropies = &self.entropies[tokens.clone()];
        let infinite = |entropy: &&f32| entropy.is_infinite();
        let of_token = entropies.iter().find(infinite).map(|&entropy| entropy.into());
        if let Some(entropy) = of_token.or(self.entropy[node].is_infinite().then_some(self.entropy[node])) {
            return Err(self.fault(node, Fault::EntropyNotFinite(entropy)));
        }
        if self.confidence[node].is_infinite() {
            return Err(self.fault(node, Fault::ConfidenceNotFinite(self.confidence[node])));
        }
        if self.entropy[node].is_nan() {
            self.entropy[node] = mean_sampled(entropies, &self.sampled[tokens]);
        }
        Ok(())
    }

    fn link(&mut self, node: usize) -> Result<()> {
        let (id, parent, tree) = (node as u32, self.parent[node], self.tree[node]);
        let num_trees = self.num_trees();
        let root = self.root.get_mut(tree as usize).ok_or(Error::NoTree { tree, num_trees })?;
        if self.status[node] > ERROR {
            return Err(Error::Status { node: id, status: self.status[node] });
        }
        if parent == NO_PARENT {
            if *root != NO_PARENT {
                return Err(Error::SecondRoot { node: id, tree, root: *root });
            }
            *root = id;
            return Ok(());
        }
        if parent >= id {
            return Err(Error::ParentOrder { node: id, parent });
        }
        let above = parent as usize;
        if self.tree[above] != tree {
            return Err(Error::ForeignParent { node: id, tree, parent, parent_tree: self.tree[above] });
        }
        if self.status[above] != OPEN {
            return Err(Error::ClosedParent { parent });
        }
        if self.round[node] < self.round[above] {
            let (round, parent) = (self.round[node], self.round[above]);
            return Err(self.fault(node, Fault::RoundBeforeParent { round, parent }));
        }
        self.has_child[above] = true;
        self.depth[node] = self.depth[above] + 1;
        Ok(())
    }

    fn check_offsets(&self) -> Result<()> {
        check_offsets("node", "token_start", &self.token_start, self.num_tokens())
    }

    fn check_reward(&self, node: usize, reward: f64) -> Result<()> {
        if !reward.is_finite() {
            return Err(self.fault(node, Fault::RewardNotFinite(reward)));
        }
        match self.status[node] {
            _ if self.parent[node] == NO_PARENT => Err(self.refused(node, "and this is a root")),
            _ if self.has_child[node] => Err(self.refused(node, "and this node has children")),
            OPEN => Err(self.refused(node, "and this node is open")),
            PRUNED | ERROR => Err(self.refused(node, "and this one was pruned or failed")),
            _ => Ok(()),
        }
    }

    fn refused(&self, node: usize, why: &'static str) -> Error {
        self.fault(node, Fault::RewardRefused(why))
    }

    /// What is wrong with a node, with its place.
    pub(crate) fn fault(&self, node: usize, fault: Fault) -> Error {
        Error::At { tree: self.tree[node], node: node as u32, fault }
    }

    pub(crate) fn check_node(&self, node: u32) -> Result<()> {
        let num_nodes = self.num_nodes();
        if (node as usize) < num_nodes { Ok(()) } else { Err(Error::NoNode { node, num_nodes }) }
    }

    /// Node ids from the root down to `node`.
    pub fn path(&self, node: u32) -> Result<Vec<u32>> {
        self.check_node(node)?;
        let mut path = Vec::with_capacity(self.depth[node as usize] as usize + 1);
        let mut at = node;
        while at != NO_PARENT {
            path.push(at);
            at = self.parent[at as usize];
        }
        path.reverse();
        Ok(path)
    }

    /// The tokens of the path from the root to `node`: what a turn below it is sampled from.
    pub fn context(&self, node: u32) -> Result<Vec<u32>> {
        let path = self.path(node)?;
        let mut context = Vec::with_capacity(path.iter().map(|&n| self.token_range(n as usize).len()).sum());
        for node in path {
            context.extend_from_slice(&self.token_ids[self.token_range(node as usize)]);
        }
        Ok(context)
    }

    /// Where a node's tokens stand in the token columns.
    pub fn token_range(&self, node: usize) -> std::ops::Range<usize> {
        self.token_start[node] as usize..self.token_start[node + 1] as usize
    }

    /// Childless nodes of one tree, in the order of their ids.
    pub fn leaves(&self, tree: u32) -> Result<Vec<u32>> {
        let num_trees = self.num_trees();
        let root = *self.root.get(tree as usize).ok_or(Error::NoTree { tree, num_trees })?;
        let of_tree = |&node: &u32| self.tree[node as usize] == tree && !self.has_child[node as usize];
        Ok((root..self.num_nodes() as u32).filter(of_tree).collect())
    }

    /// Tokens that the policy sampled, a node.
    pub fn gen_tokens(&self) -> Vec<u32> {
        let count = |node| self.sampled[self.token_range(node)].iter().filter(|&&s| s).count() as u32;
        (0..self.num_nodes()).map(count).collect()
    }
}

/// Whether what is part of a tool call was sampled.
fn are_sampled(tool_call: &[bool], sampled: &[bool]) -> bool {
    tool_call.iter().zip(sampled).all(|(call, sampled)| call <= sampled)
}

/// Mean over the sampled tokens whose entropy is known; NaN where there is none.
fn mean_sampled(entropies: &[f32], sampled: &[bool]) -> f64 {
    let known = entropies.iter().zip(sampled).filter(|(entropy, sampled)| **sampled && !entropy.is_nan());
    let (sum, count) = known.fold((0.0, 0_u32), |(sum, count), (&entropy, _)| (sum + f64::from(entropy), count + 1));
    if count == 0 { f64::NAN } else { sum / f64::from(count) }
}

/// `rows` as an id, where one is left.
pub(crate) fn row_id(rows: usize, of: &'static str) -> Result<u32> {
    if rows < NO_PARENT as usize { Ok(rows as u32) } else { Err(Error::Full(NO_PARENT as usize, of)) }
}

pub(crate) fn check_length(column: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Length { column, got, expected }) }
}

/// Offsets start at 0, never decrease, and end at `num_tokens`; there is at least one.
pub(crate) fn check_offsets(row: &'static str, column: &'static str, offsets: &[u64], num_tokens: usize) -> Result<()> {
    if let Some(at) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        return Err(Error::Offsets { row, at: at as u32 });
    }
    match (offsets.first(), offsets.last()) {
        (Some(0), Some(&last)) => check_length("token_ids", num_tokens, last as usize),
        (Some(&got), _) => Err(Error::FirstOffset { column, got }),
        (None, _) => check_length(column, 0, 1),
    }
}

pub(crate) fn or_filled<T: Copy>(column: Option<&[T]>, len: usize, value: T) -> Vec<T> {
    column.map_or_else(|| vec![value; len], <[T]>::to_vec)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const NONE: f64 = f64::NAN;

    /// A forest without tokens of round 0 whose inner nodes are open and whose scored nodes are done.
    pub(crate) fn planted(prompt: &[u32], parent: &[u32], tree: &[u32], reward: &[f64]) -> Result<Forest> {
        let status: Vec<u8> = reward.iter().map(|r| if r.is_nan() { OPEN } else { DONE }).collect();
        let round = Some(&vec![0; parent.len()][..]);
        Forest::from_columns(Columns { prompt, parent, tree, status: &status, reward, round, ..Columns::default() })
    }

    /// The tree of the published vectors: r → A, B, C · A → A1 (1), A2 (0) · B → B1 → B1a (1), B1b (1), B1c (0) · C (0).
    /// Ids in this order: r, A, B, C, A1, A2, B1, B1a, B1b, B1c; `two` plants a second one, s → D (0), E (1).
    pub(crate) fn published(two: bool) -> Forest {
        let parent = [NO_PARENT, 0, 0, 0, 1, 1, 2, 6, 6, 6, NO_PARENT, 10, 10];
        let tree = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1];
        let reward = [NONE, NONE, NONE, 0.0, 1.0, 0.0, NONE, 1.0, 1.0, 0.0, NONE, 0.0, 1.0];
        let (prompt, nodes): (&[u32], _) = if two { (&[0, 0], 13) } else { (&[0], 10) };
        planted(prompt, &parent[..nodes], &tree[..nodes], &reward[..nodes]).unwrap()
    }

    /// One path of `length` nodes whose end is scored 1.
    pub(crate) fn chain(length: u32) -> Forest {
        let parent: Vec<u32> = (0..length).map(|node| node.checked_sub(1).unwrap_or(NO_PARENT)).collect();
        let mut reward = vec![NONE; length as usize];
        reward[length as usize - 1] = 1.0;
        planted(&[0], &parent, &vec![0; length as usize], &reward).unwrap()
    }

    fn turn(token_ids: &[u32]) -> Tokens<'_> {
        const SAMPLED: [bool; 4] = [true; 4];
        const LOGPROBS: [f32; 4] = [-0.5; 4];
        Tokens { token_ids, sampled: &SAMPLED[..token_ids.len()], logprobs: &LOGPROBS[..token_ids.len()] }
    }

    /// 0 → 1 (open) → 2 (done).
    fn grown() -> Forest {
        let mut forest = Forest::new();
        assert_eq!(forest.add_tree(7, &[1, 2]), Ok(0));
        assert_eq!(forest.add_node(0, turn(&[3]), OPEN, 1), Ok(1));
        assert_eq!(forest.add_node(1, turn(&[4, 5]), DONE, 2), Ok(2));
        forest
    }

    #[test]
    fn a_path_leads_from_the_root_and_a_context_is_its_tokens() {
        let mut forest = grown();
        forest.add_node(0, turn(&[]), ERROR, 1).unwrap();
        assert_eq!(forest.path(2), Ok(vec![0, 1, 2]));
        assert_eq!(forest.context(2), Ok(vec![1, 2, 3, 4, 5]));
        assert_eq!(forest.leaves(0), Ok(vec![2, 3]));
        assert_eq!(forest.gen_tokens(), [0, 1, 2, 0]);
        assert_eq!(forest.depth, [0, 1, 2, 1]);
        assert_eq!(forest.path(4), Err(Error::NoNode { node: 4, num_nodes: 4 }));
        assert_eq!(forest.leaves(1), Err(Error::NoTree { tree: 1, num_trees: 1 }));
    }

    #[test]
    fn a_row_that_breaks_an_invariant_is_refused_and_changes_nothing() {
        let mut forest = grown();
        assert_eq!(forest.add_node(2, turn(&[]), DONE, 0), Err(Error::ClosedParent { parent: 2 }));
        assert_eq!(forest.add_node(9, turn(&[]), DONE, 0), Err(Error::NoNode { node: 9, num_nodes: 3 }));
        assert_eq!(forest.add_node(1, turn(&[]), 6, 0), Err(Error::Status { node: 3, status: 6 }));
        let uneven = Tokens { token_ids: &[1], sampled: &[], logprobs: &[0.0] };
        let length = Error::Length { column: "sampled", got: 0, expected: 1 };
        assert_eq!(forest.add_node(1, uneven, DONE, 0), Err(length));
        assert_eq!((forest.num_nodes(), forest.num_tokens()), (3, 5));
    }

    #[test]
    fn a_node_shows_the_mean_entropy_of_what_was_sampled_and_its_round() {
        let mut forest = grown();
        assert!(forest.knows_rounds && forest.entropy[2].is_nan() && forest.confidence[2].is_nan());
        let tokens = Tokens { token_ids: &[6, 7, 8], sampled: &[true, true, false], logprobs: &[-0.5, -0.5, 0.0] };
        let entropies = Some(&[1.0, 2.0, f32::NAN][..]);
        let drawn = Drawn { round: 3, entropies, confidence: -0.25, ..Drawn::default() };
        assert_eq!(forest.add_drawn(1, tokens, OPEN, 1, drawn), Ok(3));
        assert_eq!((forest.entropy[3], forest.round[3], forest.confidence[3]), (1.5, 3, -0.25));
        assert_eq!(forest.entropies.len(), forest.num_tokens());
        let fault = Fault::RoundBeforeParent { round: 2, parent: 3 };
        let early = forest.add_drawn(3, turn(&[9]), DONE, 1, Drawn { round: 2, ..Drawn::default() });
        assert_eq!(early, Err(Error::At { tree: 0, node: 4, fault }));
        let infinite = Drawn { entropies: Some(&[f32::INFINITY]), ..drawn };
        let fault = Fault::EntropyNotFinite(f64::INFINITY);
        assert_eq!(forest.add_drawn(3, turn(&[9]), DONE, 1, infinite), Err(Error::At { tree: 0, node: 4, fault }));
        let short = Error::Length { column: "entropies", got: 1, expected: 2 };
        let drawn = Drawn { entropies: Some(&[1.0]), ..drawn };
        assert_eq!(forest.add_drawn(3, turn(&[9, 9]), DONE, 1, drawn), Err(short));
        assert_eq!(forest.num_nodes(), 4);
    }

    #[test]
    fn only_a_closed_leaf_is_rewarded_and_once() {
        let refused = |result| matches!(result, Err(Error::At { fault: Fault::RewardRefused(_), .. }));
        let mut forest = grown();
        for node in [0, 1] {
            assert!(refused(forest.set_reward(node, 1.0)));
        }
        let fault = Fault::RewardNotFinite(f64::INFINITY);
        assert_eq!(forest.set_reward(2, f64::INFINITY), Err(Error::At { tree: 0, node: 2, fault }));
        assert_eq!(forest.set_reward(2, 0.5), Ok(()));
        assert!(refused(forest.set_reward(2, 0.5)));
        for status in [PRUNED, ERROR] {
            let failed = forest.add_node(1, turn(&[]), status, 0).unwrap();
            assert!(refused(forest.set_reward(failed, 1.0)));
        }
    }

    #[test]
    fn every_node_hangs_below_the_one_root_of_its_tree() {
        let linked = |prompt: &[u32], parent: &[u32], tree: &[u32]| {
            planted(prompt, parent, tree, &vec![NONE; parent.len()]).map(|forest| forest.root)
        };
        assert_eq!(linked(&[0, 0], &[NO_PARENT, NO_PARENT, 0], &[1, 0, 1]), Ok(vec![1, 0]));
        assert_eq!(linked(&[0], &[1, NO_PARENT], &[0, 0]), Err(Error::ParentOrder { node: 0, parent: 1 }));
        assert_eq!(linked(&[0], &[NO_PARENT; 2], &[0, 0]), Err(Error::SecondRoot { node: 1, tree: 0, root: 0 }));
        assert_eq!(linked(&[0, 0], &[NO_PARENT], &[0]), Err(Error::NoRoot { tree: 1 }));
        assert_eq!(linked(&[0], &[NO_PARENT], &[1]), Err(Error::NoTree { tree: 1, num_trees: 1 }));
        let foreign = Error::ForeignParent { node: 2, tree: 1, parent: 0, parent_tree: 0 };
        assert_eq!(linked(&[0, 0], &[NO_PARENT, NO_PARENT, 0], &[0, 1, 1]), Err(foreign));
    }

    #[test]
    fn offsets_never_decrease_and_cover_all_tokens() {
        let with = |token_start: &[u64]| {
            let columns = Columns {
                prompt: &[0],
                parent: &[NO_PARENT, 0],
                tree: &[0, 0],
                status: &[OPEN, DONE],
                reward: &[NONE, 1.0],
                token_start: Some(token_start),
                token_ids: Some(&[5, 6]),
                ..Columns::default()
            };
            Forest::from_columns(columns).map(|forest| forest.num_tokens())
        };
        assert_eq!(with(&[0, 1, 2]), Ok(2));
        assert_eq!(with(&[0, 2, 1]), Err(Error::Offsets { row: "node", at: 1 }));
        assert_eq!(with(&[0, 1, 3]), Err(Error::Length { column: "token_ids", got: 2, expected: 3 }));
        assert_eq!(with(&[1, 1, 2]), Err(Error::FirstOffset { column: "token_start", got: 1 }));
    }

    #[test]
    fn the_path_of_a_million_nodes_needs_no_recursion() {
        let forest = chain(1_000_000);
        assert!(forest.path(999_999).unwrap().into_iter().eq(0..1_000_000));
    }
}
