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
    #[error("tree {tree}, node {node}: {fault}")]
    At { tree: u32, node: u32, fault: Fault },
    #[error("token offsets decrease at {row} {at}")]
    Offsets { row: &'static str, at: u32 },
    #[error("{column} begins with {got}, expected 0")]
    FirstOffset { column: &'static str, got: u64 },
    #[error("order {forest} names node {node} twice")]
    OrderRepeats { forest: usize, node: u32 },
    #[error("row {row}: {fault}")]
    Row { row: usize, fault: Fault },
    #[error("the forest is frozen: its columns have been lent")]
    Frozen,
    #[error("the scores are of another forest, or of this one before it changed")]
    ForeignScores,
    #[error("these advantages were given, not computed: there is nothing to explain")]
    GivenScores,
    #[error("{0} needs to know in which round each turn was drawn, and this forest does not tell")]
    NoRounds(&'static str),
    #[error("{0} needs the log-probabilities that turns were sampled with, and this forest does not tell")]
    NoLogprobs(&'static str),
    #[error("mask tool-calls needs to know which tokens are tool calls, and this forest does not tell")]
    NoToolCalls,
    #[error("a sum of estimators needs at least one term")]
    NoTerms,
    #[error("{0} weighs turns itself: it stands alone, not in a sum")]
    WeighsAlone(&'static str),
    #[error("{0} weighs turns itself: it goes with {1} {2} alone")]
    OwnWeights(String, &'static str, &'static str),
    #[error("unknown {what} '{name}'; {hint}")]
    Unknown { what: &'static str, name: String, hint: String },
    #[error("{of} has no option '{name}'; {hint}")]
    UnknownOption { of: &'static str, name: String, hint: String },
    #[error("option {name}: got {got}, expected {expected}")]
    OptionValue { name: String, got: String, expected: String },
    #[error("option {name}: expected a number, a name or a flag")]
    OptionType { name: String },
    #[error("selection rule {rule} needs {what}, and the forest has none")]
    RuleNeeds { rule: &'static str, what: &'static str },
    #[error("candidates name node {node} twice")]
    CandidateRepeats { node: u32 },
    #[error("the score of candidate {place} is NaN")]
    ScoreIsNan { place: usize },
    #[error("{name}: got {got}, expected {expected}")]
    Given { name: &'static str, got: String, expected: &'static str },
    #[error("cannot choose {asked} of {available}")]
    TooFew { asked: usize, available: usize },
}

/// What is wrong with one node, or with a row of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum Fault {
    #[error("reward {0} is not finite")]
    RewardNotFinite(f64),
    #[error("only a closed leaf has a reward, {0}")]
    RewardRefused(&'static str),
    #[error("entropy {0} is not finite")]
    EntropyNotFinite(f64),
    #[error("confidence {0} is not finite")]
    ConfidenceNotFinite(f64),
    #[error("a token of a tool call was not sampled")]
    CallNotSampled,
    #[error("round {round} comes before its parent's, {parent}")]
    RoundBeforeParent { round: u32, parent: u32 },
    #[error("two turns go on from this one in its own round, {0}: an expansion is drawn in a later one")]
    GoesOnTwice(u32),
    #[error("siblings=distinct says that no turn was drawn twice, and an earlier sibling holds the same")]
    DrawnBefore,
    #[error("scale bernoulli needs values in [0, 1], got {0}")]
    NotAProbability(f64),
    #[error("value child-softmax needs an entropy, and this node has none")]
    NoEntropy,
    #[error("selection rule {rule} needs {what}, and this node has none")]
    RuleNeeds { rule: &'static str, what: &'static str },
    #[error("the advantage is not finite: rewards or options are too large")]
    NotFinite,
    #[error("advantage {0} is not finite")]
    AdvantageNotFinite(f64),
    #[error("weight {0} is no finite number, 0 or more")]
    NoWeight(f64),
    #[error("status code {0}, expected 1 to 3, or 4 or 5 where there is no reward")]
    NotClosed(u8),
}

impl Error {
    /// The tree and the node that it is about, where it is about one.
    pub fn place(&self) -> Option<(u32, u32)> {
        if let Self::At { tree, node, .. } = self { Some((*tree, *node)) } else { None }
    }

    /// The message without its place.
    pub fn reason(&self) -> String {
        if let Self::At { fault, .. } = self { fault.to_string() } else { self.to_string() }
    }
}

/// What every fallible operation of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
