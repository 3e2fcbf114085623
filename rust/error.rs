//! Everything that can be wrong with a forest or a request: one enum, whose variants carry the offending values.

use thiserror::Error;

/// A caller's mistake. The message says what was got and what was expected.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Error {
    #[error("{column} has {got} entries, expected {expected}")]
    Length { column: &'static str, got: usize, expected: usize },
    #[error("more than {0} {1}")]
    Full(usize, &'static str),
    #[error("no node {node}: the forest has {num_nodes}")]
    NoNode { node: u32, num_nodes: usize },
    #[error("no tree {tree}: the forest has {num_trees}")]
    NoTree { tree: u32, num_trees: usize },
    #[error("node {node}: parent {parent} does not precede it")]
    ParentOrder { node: u32, parent: u32 },
    #[error("node {node} is in tree {tree}, its parent {parent} in tree {parent_tree}")]
    ForeignParent { node: u32, tree: u32, parent: u32, parent_tree: u32 },
    #[error("node {node}: tree {tree} has a second root, its first is node {root}")]
    SecondRoot { node: u32, tree: u32, root: u32 },
    #[error("tree {tree} has no root")]
    NoRoot { tree: u32 },
    #[error("node {node} has status code {status}, expected 0 to 5")]
    Status { node: u32, status: u8 },
    #[error("node {parent} is closed: nothing can be added below it")]
    ClosedParent { parent: u32 },
    #[error("tree {tree}, node {node}: reward {reward} is not finite")]
    RewardNotFinite { tree: u32, node: u32, reward: f64 },
    #[error("tree {tree}, node {node}: only a closed leaf has a reward, {why}")]
    RewardRefused { tree: u32, node: u32, why: &'static str },
    #[error("token offsets decrease at node {node}")]
    Offsets { node: u32 },
    #[error("the forest is frozen: its columns have been lent")]
    Frozen,
    #[error("the scores are of another forest, or of this one before a reward was set")]
    ForeignScores,
    #[error("unknown estimator '{name}'; {hint}")]
    UnknownEstimator { name: String, hint: String },
    #[error("{estimator} has no option '{name}'; {hint}")]
    UnknownOption { estimator: &'static str, name: String, hint: String },
    #[error("option {name}: got {got}, expected {expected}")]
    OptionValue { name: String, got: String, expected: String },
    #[error("tree {tree}, node {node}: scale bernoulli needs values in [0, 1], got {value}")]
    NotAProbability { tree: u32, node: u32, value: f64 },
    #[error("value child-softmax needs the entropy of node {node}, which has none")]
    NoEntropy { node: u32 },
    #[error("cannot choose {asked} of {available}")]
    TooFew { asked: usize, available: usize },
}

/// What every fallible operation of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
