//! Forest -> continuations: what each expansion, or first chain, drew; turns of one round, each below the last.

use crate::error::{Error, Fault, Result};
use crate::forest::{Forest, NO_PARENT};
use crate::states::States;

/// Which turns belong together. All columns have an entry a node; a root belongs to none.
#[derive(Debug, Clone)]
pub struct Continuations {
    /// The first turn of the node's continuation; itself where it starts one, `NO_PARENT` on a root.
    pub first: Vec<u32>,
    /// The reward of the leaf with which the continuation ended; NaN = none.
    pub reward: Vec<f64>,
}

impl Continuations {
    /// Refuses a forest that does not know its rounds, and one in which a continuation goes on twice.
    pub fn of(forest: &Forest, estimator: &'static str) -> Result<Self> {
        if !forest.knows_rounds {
            return Err(Error::NoRounds(estimator));
        }
        let mut first = vec![NO_PARENT; forest.num_nodes()];
        let mut goes_on = vec![false; forest.num_nodes()];
        for node in 0..forest.num_nodes() {
            let above = forest.parent[node] as usize;
            if forest.parent[node] == NO_PARENT {
                continue;
            }
            if first[above] == NO_PARENT || forest.round[above] != forest.round[node] {
                first[node] = node as u32;
            } else if std::mem::replace(&mut goes_on[above], true) {
                return Err(forest.fault(above, Fault::GoesOnTwice(forest.round[above])));
            } else {
                first[node] = first[above];
            }
        }
        let mut reward = forest.reward.clone();
        for node in (0..forest.num_nodes()).rev() {
            if first[node] != NO_PARENT && first[node] as usize != node {
                reward[forest.parent[node] as usize] = reward[node];
            }
        }
        Ok(Self { first, reward })
    }

    /// Whether a node starts one.
    pub fn starts(&self, node: u32) -> bool {
        self.first[node as usize] == node
    }
}

/// How often something happened at each state, round by round.
#[derive(Debug, Clone)]
pub struct RoundCounts {
    start: Vec<u32>,
    /// Those of state s, sorted, stand at `start[s]..start[s + 1]`.
    rounds: Vec<u32>,
}

impl RoundCounts {
    /// Of events as (state, round).
    pub fn new(states: &States, events: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut start = vec![0u32; states.num() + 1];
        events.clone().for_each(|(state, _)| start[state as usize + 1] += 1);
        (0..states.num()).for_each(|state| start[state + 1] += start[state]);
        let (mut next, mut rounds) = (start.clone(), vec![0; start[states.num()] as usize]);
        for (state, round) in events {
            rounds[next[state as usize] as usize] = round;
            next[state as usize] += 1;
        }
        start.windows(2).for_each(|pair| rounds[pair[0] as usize..pair[1] as usize].sort_unstable());
        Self { start, rounds }
    }

    /// How many there were at a state in rounds before this one.
    pub fn before(&self, state: u32, round: u32) -> f64 {
        let here = &self.rounds[self.start[state as usize] as usize..self.start[state as usize + 1] as usize];
        here.partition_point(|&other| other < round) as f64
    }

    /// How many there were at a state in this round.
    pub fn during(&self, state: u32, round: u32) -> f64 {
        let here = &self.rounds[self.start[state as usize] as usize..self.start[state as usize + 1] as usize];
        (here.partition_point(|&other| other <= round) - here.partition_point(|&other| other < round)) as f64
    }
}
