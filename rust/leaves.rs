//! Forest -> a table with a row a leaf: what statistics of rollouts are made of.

use std::collections::HashMap;

use crate::error::Result;
use crate::forest::{Forest, row_id};
use crate::trie::{Place, TOP, Trie};

/// One row a childless node, in the order of node ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeafColumns {
    pub node: Vec<u32>,
    pub tree: Vec<u32>,
    pub prompt: Vec<u32>,
    pub depth: Vec<u32>,
    pub status: Vec<u8>,
    /// NaN = none.
    pub reward: Vec<f64>,
    /// Tokens from the root to the leaf, and those of them that the policy sampled.
    pub path_tokens: Vec<u32>,
    pub gen_tokens: Vec<u32>,
    /// The first row of the same prompt whose path holds the same tokens; a row that has none in front is its own.
    pub same_as: Vec<u32>,
}

impl Forest {
    /// The leaves of all trees.
    pub fn leaf_columns(&self) -> Result<LeafColumns> {
        row_id(self.num_tokens(), "tokens")?;
        let gen_tokens = self.gen_tokens();
        let mut above = vec![(0, 0); self.num_nodes()];
        let mut places = Places::new(self);
        let mut leaves = LeafColumns::default();
        for node in 0..self.num_nodes() {
            let (path, sampled) = above.get(self.parent[node] as usize).copied().unwrap_or((0, 0));
            above[node] = (path + self.token_range(node).len() as u32, sampled + gen_tokens[node]);
            places.add(self, node);
            if !self.has_child[node] {
                leaves.push(self, node, above[node], &mut places);
            }
        }
        Ok(leaves)
    }
}

impl LeafColumns {
    fn push(&mut self, forest: &Forest, node: usize, (path_tokens, gen_tokens): (u32, u32), places: &mut Places) {
        let prompt = forest.prompt[forest.tree[node] as usize];
        self.same_as.push(places.first_row(prompt, node, self.node.len() as u32));
        self.node.push(node as u32);
        self.tree.push(forest.tree[node]);
        self.prompt.push(prompt);
        self.depth.push(forest.depth[node]);
        self.status.push(forest.status[node]);
        self.reward.push(forest.reward[node]);
        self.path_tokens.push(path_tokens);
        self.gen_tokens.push(gen_tokens);
    }
}

/// Where paths end in a trie of all tokens: equal paths end at one place.
struct Places {
    trie: Trie,
    end: Vec<Place>,
    rows: HashMap<(u32, u32), u32>,
}

impl Places {
    fn new(forest: &Forest) -> Self {
        let trie = Trie::with_capacity(forest.num_tokens());
        Self { trie, end: vec![TOP; forest.num_nodes()], rows: HashMap::new() }
    }

    fn add(&mut self, forest: &Forest, node: usize) {
        let above = self.end.get(forest.parent[node] as usize).copied().unwrap_or(TOP);
        let tokens = &forest.token_ids[forest.token_range(node)];
        self.end[node] = self.trie.add(above, tokens, &mut vec![]);
    }

    fn first_row(&mut self, prompt: u32, node: usize, row: u32) -> u32 {
        *self.rows.entry((prompt, self.end[node].number())).or_insert(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::{DONE, ERROR, OPEN, Tokens};
    use crate::rows::tests::forked;

    #[test]
    fn a_leaf_knows_its_path() {
        let leaves = forked().leaf_columns().unwrap();
        assert_eq!((leaves.node, leaves.depth), (vec![2, 3], vec![2, 2]));
        assert_eq!((leaves.path_tokens, leaves.gen_tokens), (vec![5, 5], vec![2, 2]));
        assert_eq!((leaves.reward, leaves.status), (vec![1.0, 0.0], vec![DONE; 2]));
        assert_eq!((leaves.tree, leaves.prompt, leaves.same_as), (vec![0, 0], vec![9, 9], vec![0, 1]));
    }

    #[test]
    fn equal_paths_of_a_prompt_are_one_however_they_are_cut() {
        let turn = |token_ids| Tokens {
            token_ids,
            sampled: &[true; 2][..token_ids.len()],
            logprobs: &[0.0; 2][..token_ids.len()],
        };
        let mut forest = Forest::new();
        for prompt in [5, 5, 6] {
            let root = forest.add_tree(prompt, &[1]).unwrap();
            let inner = forest.add_node(root, turn(&[2]), OPEN, 0).unwrap();
            forest.add_node(inner, turn(&[3]), DONE, 0).unwrap();
            forest.add_node(root, turn(&[2, 3]), ERROR, 0).unwrap();
            forest.add_node(root, turn(&[2]), DONE, 0).unwrap();
        }
        assert_eq!(forest.leaf_columns().unwrap().same_as, [0, 0, 2, 0, 0, 2, 6, 6, 8]);
        assert_eq!(Forest::new().leaf_columns().unwrap(), LeafColumns::default());
    }
}
