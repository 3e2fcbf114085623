//! Forest -> states: nodes of a prompt whose paths hold the same tokens, turn by turn, lead to one.

use std::slice::from_ref;

use crate::forest::{Forest, NO_PARENT};
use crate::numbering::Numbering;

/// What turns are sampled from. A node is a draw at the state of its parent, and leads to the state behind it.
///
/// All roots of a prompt are one. A state has a higher number than the one above it.
#[derive(Debug, Clone)]
pub struct States {
    /// Per node: the state that it leads to.
    pub behind: Vec<u32>,
    /// Per state: the one above it; `NO_PARENT` at the roots.
    pub above: Vec<u32>,
}

impl States {
    /// One pass over nodes and tokens. A root is numbered by its prompt, a turn by the state above it and its tokens.
    pub fn of(forest: &Forest) -> Self {
        let mut numbering = Numbering::with_capacity(forest.num_nodes());
        let mut states = Self { behind: Vec::with_capacity(forest.num_nodes()), above: vec![] };
        for (node, &parent) in forest.parent.iter().enumerate() {
            let above = states.behind.get(parent as usize).copied().unwrap_or(NO_PARENT);
            let state = match parent {
                NO_PARENT => numbering.of(NO_PARENT, from_ref(&forest.prompt[forest.tree[node] as usize])),
                _ => numbering.of(above, &forest.token_ids[forest.token_range(node)]),
            };
            if state as usize == states.above.len() {
                states.above.push(above);
            }
            states.behind.push(state);
        }
        states
    }

    /// How many there are.
    pub fn num(&self) -> usize {
        self.above.len()
    }

    /// The state that a node was drawn at; none for a root.
    pub fn at(&self, forest: &Forest, node: u32) -> Option<u32> {
        self.behind.get(forest.parent[node as usize] as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::{Columns, OPEN};

    /// Trees of prompts 4, 4 and 5, below each root the turns [1, 2] and, below the first of them, [3].
    fn merged() -> Forest {
        let parent = [NO_PARENT, 0, 1, 0, NO_PARENT, 4, 5, NO_PARENT, 7];
        let starts = [0, 1, 3, 4, 6, 7, 9, 10, 11, 13];
        Forest::from_columns(Columns {
            prompt: &[4, 4, 5],
            parent: &parent,
            tree: &[0, 0, 0, 0, 1, 1, 1, 2, 2],
            status: &[OPEN; 9],
            reward: &[f64::NAN; 9],
            token_start: Some(&starts),
            token_ids: Some(&[9, 1, 2, 3, 1, 2, 8, 1, 2, 3, 9, 1, 2]),
            ..Columns::default()
        })
        .unwrap()
    }

    #[test]
    fn equal_paths_of_a_prompt_lead_to_one_state() {
        let forest = merged();
        let states = States::of(&forest);
        assert_eq!(states.behind, [0, 1, 2, 1, 0, 1, 2, 3, 4]);
        assert_eq!(states.above, [NO_PARENT, 0, 1, NO_PARENT, 3]);
        assert_eq!((states.at(&forest, 6), states.at(&forest, 4)), (Some(1), None));
    }
}
