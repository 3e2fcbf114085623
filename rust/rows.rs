//! Forest + scores -> training rows: one a scored leaf, shared prefixes repeated.

use crate::advantage::Scores;
use crate::error::Result;
use crate::forest::{Forest, row_id};
use crate::pack::{check, leaf_paths};

/// One node of a row: what its tokens are worth on the way to the row's leaf.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    pub node: u32,
    /// A(l) + a(n): of its tool calls, and of its other tokens, whose advantage has no masked terms in it.
    pub advantage: f64,
    pub unmasked: f64,
    /// |L(n)|^(p − 1): the shares of a node that rows have in common add up to |L(n)|^p, or to the weight of its own.
    pub weight: f64,
}

/// A row: the nodes from the root to a scored leaf.
pub fn row<'a>(
    forest: &'a Forest,
    scores: &'a Scores,
    prefix_weight: f64,
    leaf: u32,
) -> Result<impl Iterator<Item = Part> + 'a> {
    let part = move |node: u32| Part {
        node,
        advantage: scores.advantage_of(node as usize, leaf as usize),
        unmasked: scores.unmasked_of(node as usize, leaf as usize),
        weight: scores.share(node as usize, prefix_weight),
    };
    Ok(forest.path(leaf)?.into_iter().map(part))
}

/// Rows of the tokens from root to leaf, flat: row b is `row_start[b]..row_start[b + 1]`.
///
/// `loss_mask` is true on sampled tokens, `logprobs` (nats) are those of sampling; `advantages` and `weights` are those
/// of each token's [`Part`], whose node is in `node_ids`.
#[derive(Debug, Clone, Default)]
pub struct ChainRows {
    pub row_start: Vec<u64>,
    pub input_ids: Vec<u32>,
    pub loss_mask: Vec<bool>,
    pub logprobs: Vec<f32>,
    pub advantages: Vec<f32>,
    pub weights: Vec<f32>,
    pub policy_version: Vec<u32>,
    pub node_ids: Vec<u32>,
    /// Per row: the prompt, the tree, and the leaf's node id and reward.
    pub group: Vec<u32>,
    pub tree: Vec<u32>,
    pub leaf: Vec<u32>,
    pub reward: Vec<f64>,
}

/// Builds the rows of all scored leaves, in the order of their node ids.
pub fn chain_rows(forest: &Forest, scores: &Scores, prefix_weight: f64) -> Result<ChainRows> {
    check(forest, scores, prefix_weight)?;
    let leaves = leaf_paths(forest, &vec![true; forest.num_trees()]);
    row_id(leaves.iter().map(|&(_, length)| length).sum(), "tokens in rows")?;
    let mut rows = ChainRows { row_start: vec![0], ..ChainRows::default() };
    for (leaf, _) in leaves {
        for part in row(forest, scores, prefix_weight, leaf)? {
            rows.push(forest, part);
        }
        let tree = forest.tree[leaf as usize];
        rows.row_start.push(rows.input_ids.len() as u64);
        rows.group.push(forest.prompt[tree as usize]);
        rows.tree.push(tree);
        rows.leaf.push(leaf);
        rows.reward.push(forest.reward[leaf as usize]);
    }
    Ok(rows)
}

impl ChainRows {
    fn push(&mut self, forest: &Forest, part: Part) {
        let tokens = forest.token_range(part.node as usize);
        self.input_ids.extend_from_slice(&forest.token_ids[tokens.clone()]);
        self.loss_mask.extend_from_slice(&forest.sampled[tokens.clone()]);
        self.logprobs.extend_from_slice(&forest.logprobs[tokens.clone()]);
        let advantage = |&in_call: &bool| if in_call { part.advantage as f32 } else { part.unmasked as f32 };
        self.advantages.extend(forest.tool_call[tokens].iter().map(advantage));
        let end = self.input_ids.len();
        self.weights.resize(end, part.weight as f32);
        self.policy_version.resize(end, forest.policy_version[part.node as usize]);
        self.node_ids.resize(end, part.node);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::advantage::score;
    use crate::error::Error;
    use crate::forest::tests::published;
    use crate::forest::{DONE, OPEN, Tokens};

    /// 0 → 1 → (2 scored 1, 3 scored 0), two tokens a turn of which the second is an observation.
    pub(crate) fn forked() -> Forest {
        let turn = |token_ids| Tokens { token_ids, sampled: &[true, false], logprobs: &[-0.5, 0.0] };
        let mut forest = Forest::new();
        forest.add_tree(9, &[1]).unwrap();
        forest.add_node(0, turn(&[2, 3]), OPEN, 1).unwrap();
        for (token_ids, reward) in [(&[4, 5], 1.0), (&[6, 7], 0.0)] {
            let leaf = forest.add_node(1, turn(token_ids), DONE, 2).unwrap();
            forest.set_reward(leaf, reward).unwrap();
        }
        forest
    }

    #[test]
    fn a_row_is_the_path_of_a_scored_leaf() {
        let forest = forked();
        let rows = chain_rows(&forest, &score(&forest, "parent", &[]).unwrap(), 0.0).unwrap();
        assert_eq!(rows.row_start, [0, 5, 10]);
        assert_eq!(rows.input_ids, [1, 2, 3, 4, 5, 1, 2, 3, 6, 7]);
        assert_eq!(rows.loss_mask[..5], [false, true, false, true, false]);
        assert_eq!(rows.logprobs[..5], [0.0, -0.5, 0.0, -0.5, 0.0]);
        assert_eq!(rows.advantages, [0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, -0.5, -0.5]);
        assert_eq!(rows.weights[..5], [0.5, 0.5, 0.5, 1.0, 1.0]);
        assert_eq!(rows.policy_version[..5], [0, 1, 1, 2, 2]);
        assert_eq!(rows.node_ids, [0, 1, 1, 2, 2, 0, 1, 1, 3, 3]);
        assert_eq!((rows.group, rows.tree), (vec![9, 9], vec![0, 0]));
        assert_eq!((rows.leaf, rows.reward), (vec![2, 3], vec![1.0, 0.0]));
    }

    #[test]
    fn a_shared_node_carries_each_leafs_own_advantage() {
        let forest = forked();
        let options = [("scale".to_owned(), crate::options::OptionValue::Text("none".to_owned()))];
        let rows = chain_rows(&forest, &score(&forest, "grpo", &options).unwrap(), 1.0).unwrap();
        assert_eq!(rows.advantages, [[0.5; 5], [-0.5; 5]].concat());
        assert_eq!(rows.weights, [1.0; 10]);
    }

    #[test]
    fn scores_of_another_forest_and_weights_without_meaning_are_refused() {
        let forest = forked();
        let scores = score(&forest, "grpo", &[]).unwrap();
        assert_eq!(chain_rows(&published(false), &scores, 1.0).unwrap_err(), Error::ForeignScores);
        for weight in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(matches!(chain_rows(&forest, &scores, weight), Err(Error::OptionValue { .. })));
        }
    }
}
