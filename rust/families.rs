//! Draws at each state, as estimates of the mean over turns there: independent ones, or siblings that all differ.

use crate::error::{Error, Fault, Result};
use crate::forest::{Forest, NO_PARENT};
use crate::normalise::Groups;
use crate::numbering::Numbering;
use crate::sampled::{SampledTurns, chance_of};
use crate::states::States;

/// The draws with a scored leaf below, state by state; those of a family stand next to each other as they were drawn.
///
/// Estimate i of a family is `own[i]` of its own draw, and `inverse[i] * chance[k]` of each draw k before it: of siblings
/// without replacement the known chances, and the rest of the mass for the last one. An independent draw is a family of
/// its own. All columns have an entry a node.
#[derive(Debug, Clone)]
pub struct Families {
    pub draws: Groups,
    distinct: bool,
    own: Vec<f64>,
    inverse: Vec<f64>,
    chance: Vec<f64>,
}

impl Families {
    /// Independent draws: each counts alone.
    pub fn independent(forest: &Forest, states: &States, num_leaves: &[u32]) -> Self {
        let nodes: Vec<u32> = (0..forest.num_nodes() as u32).collect();
        let draws = by_state(forest, states, num_leaves, &nodes);
        Self { draws, distinct: false, own: vec![], inverse: vec![], chance: vec![] }
    }

    /// Each turn was drawn until it differed from the siblings before it, in the order of rounds and nodes.
    pub fn distinct(forest: &Forest, states: &States, num_leaves: &[u32]) -> Result<Self> {
        if !forest.knows_logprobs {
            return Err(Error::NoLogprobs("siblings=distinct"));
        }
        let children: Vec<u32> =
            (0..forest.num_nodes() as u32).filter(|&node| forest.parent[node as usize] != NO_PARENT).collect();
        let siblings = Groups::new(forest.num_nodes(), &children, |node| forest.parent[node as usize]);
        let none = vec![0.0; forest.num_nodes()];
        let draws = by_state(forest, states, num_leaves, &[]);
        let mut families = Self { draws, distinct: true, own: none.clone(), inverse: none.clone(), chance: none };
        let mut in_order = Vec::with_capacity(children.len());
        for group in siblings.iter() {
            let begin = in_order.len();
            in_order.extend_from_slice(group);
            in_order[begin..].sort_by_key(|&node| forest.round[node as usize]);
            families.weigh(forest, num_leaves, &in_order[begin..]);
        }
        check_all_differ(forest, &in_order)?;
        families.draws = by_state(forest, states, num_leaves, &in_order);
        Ok(families)
    }

    fn weigh(&mut self, forest: &Forest, num_leaves: &[u32], siblings: &[u32]) {
        let (mut gone, mut known) = (0.0, 0.0);
        for &sibling in siblings {
            let node = sibling as usize;
            let chance = chance_of(forest, node);
            if num_leaves[node] > 0 {
                let rest = f64::max(0.0, 1.0 - gone);
                let total = rest + known;
                let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
                self.inverse[node] = inverse;
                self.own[node] = if total > 0.0 { rest * inverse } else { 1.0 };
                self.chance[node] = chance;
                known += chance;
            }
            gone += chance;
        }
    }

    /// The families of draws at one state.
    pub fn split<'a>(&self, forest: &Forest, draws: &'a [u32]) -> impl Iterator<Item = &'a [u32]> {
        let alike = |a: &u32, b: &u32| self.distinct && forest.parent[*a as usize] == forest.parent[*b as usize];
        draws.chunk_by(alike)
    }

    /// What each draw of a family estimates, of the values of its draws.
    pub fn estimates(&self, family: &[u32], value: impl Fn(u32) -> f64, estimate: &mut [f64]) {
        if let &[alone] = family {
            estimate[alone as usize] = value(alone);
            return;
        }
        let mut before = 0.0;
        for &draw in family {
            let node = draw as usize;
            estimate[node] = self.inverse[node] * before + self.own[node] * value(draw);
            before += self.chance[node] * value(draw);
        }
    }

    /// For each draw of a family, last first: its count in all the family's estimates, and the mean of their baselines
    /// by these counts.
    pub fn pooled(&self, family: &[u32], baseline: &[f64], mut take: impl FnMut(u32, f64, f64)) {
        if let (&[alone], &[own]) = (family, baseline) {
            return take(alone, 1.0, own);
        }
        let (mut later, mut later_baselines) = (0.0, 0.0);
        for (&draw, &own) in family.iter().zip(baseline).rev() {
            let node = draw as usize;
            let count = self.own[node] + self.chance[node] * later;
            let sum = self.own[node] * own + self.chance[node] * later_baselines;
            take(draw, count, if count > 0.0 { sum / count } else { own });
            later += self.inverse[node];
            later_baselines += self.inverse[node] * own;
        }
    }
}

/// Refuses siblings of which two sampled the same.
fn check_all_differ(forest: &Forest, nodes: &[u32]) -> Result<()> {
    let sampled = SampledTurns::of(forest, |node| forest.parent[node] != NO_PARENT);
    let mut turns = Numbering::with_capacity(nodes.len());
    for (num, node) in nodes.iter().map(|&node| node as usize).enumerate() {
        if (turns.of(forest.parent[node], sampled.turn(node)) as usize) < num {
            return Err(forest.fault(node, Fault::DrawnBefore));
        }
    }
    Ok(())
}

fn by_state(forest: &Forest, states: &States, num_leaves: &[u32], nodes: &[u32]) -> Groups {
    let counts = |&node: &u32| forest.parent[node as usize] != NO_PARENT && num_leaves[node as usize] > 0;
    let nodes: Vec<u32> = nodes.iter().copied().filter(counts).collect();
    Groups::new(states.num(), &nodes, |node| states.behind[forest.parent[node as usize] as usize])
}
