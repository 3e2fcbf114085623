//! Forests that grew apart -> one forest, each in an order of its own.

use crate::error::{Error, Result};
use crate::forest::{Forest, NO_PARENT, check_length, row_id};

impl Forest {
    /// Joins forests, all columns; trees and nodes are numbered on, prompts stay as they are.
    ///
    /// `orders` says for each forest in which order its nodes come: all of them, each once, a parent before its child.
    /// Without it they stay in theirs.
    pub fn concat(forests: &[&Self], orders: Option<&[Vec<u32>]>) -> Result<Self> {
        if let Some(orders) = orders {
            check_length("orders", orders.len(), forests.len())?;
        }
        let total = |count: fn(&Self) -> usize| forests.iter().map(|forest| count(forest)).sum::<usize>();
        row_id(total(Self::num_trees), "trees")?;
        row_id(total(Self::num_nodes), "nodes")?;
        let mut joined = Self::with_capacity(total(Self::num_trees), total(Self::num_nodes), total(Self::num_tokens));
        joined.knows_rounds = forests.iter().all(|forest| forest.knows_rounds);
        joined.knows_logprobs = forests.iter().all(|forest| forest.knows_logprobs);
        joined.knows_tool_calls = forests.iter().all(|forest| forest.knows_tool_calls);
        for (number, forest) in forests.iter().enumerate() {
            match orders {
                Some(orders) => joined.append_in_order(forest, &orders[number], number)?,
                None => joined.append(forest),
            }
        }
        Ok(joined)
    }

    fn append(&mut self, other: &Self) {
        let (first_tree, first_node) = (self.num_trees() as u32, self.num_nodes() as u32);
        let first_token = self.num_tokens() as u64;
        let moved = |parent: &u32| if *parent == NO_PARENT { NO_PARENT } else { first_node + parent };
        self.root.extend(other.root.iter().map(|root| first_node + root));
        self.parent.extend(other.parent.iter().map(moved));
        self.token_start.extend(other.token_start[1..].iter().map(|start| first_token + start));
        self.tree.extend(other.tree.iter().map(|tree| first_tree + tree));
        self.prompt.extend_from_slice(&other.prompt);
        self.depth.extend_from_slice(&other.depth);
        self.status.extend_from_slice(&other.status);
        self.reward.extend_from_slice(&other.reward);
        self.policy_version.extend_from_slice(&other.policy_version);
        self.round.extend_from_slice(&other.round);
        self.entropy.extend_from_slice(&other.entropy);
        self.confidence.extend_from_slice(&other.confidence);
        self.state_key.extend_from_slice(&other.state_key);
        self.has_child.extend_from_slice(&other.has_child);
        self.token_ids.extend_from_slice(&other.token_ids);
        self.sampled.extend_from_slice(&other.sampled);
        self.tool_call.extend_from_slice(&other.tool_call);
        self.logprobs.extend_from_slice(&other.logprobs);
        self.entropies.extend_from_slice(&other.entropies);
    }

    fn append_in_order(&mut self, other: &Self, order: &[u32], number: usize) -> Result<()> {
        check_length("order", order.len(), other.num_nodes())?;
        let (first_tree, first_node) = (self.num_trees() as u32, self.num_nodes() as u32);
        let mut place = vec![NO_PARENT; other.num_nodes()];
        self.prompt.extend_from_slice(&other.prompt);
        self.root.resize(self.prompt.len(), NO_PARENT);
        for (&node, id) in order.iter().zip(first_node..) {
            other.check_node(node)?;
            let at = node as usize;
            if place[at] != NO_PARENT {
                return Err(Error::OrderRepeats { forest: number, node });
            }
            place[at] = id;
            let tree = first_tree + other.tree[at];
            let parent = match place.get(other.parent[at] as usize) {
                Some(&NO_PARENT) => return Err(Error::ParentOrder { node, parent: other.parent[at] }),
                Some(&parent) => parent,
                None => {
                    self.root[tree as usize] = id;
                    NO_PARENT
                }
            };
            self.tree.push(tree);
            self.parent.push(parent);
            self.depth.push(other.depth[at]);
            self.status.push(other.status[at]);
            self.reward.push(other.reward[at]);
            self.policy_version.push(other.policy_version[at]);
            self.round.push(other.round[at]);
            self.entropy.push(other.entropy[at]);
            self.confidence.push(other.confidence[at]);
            self.state_key.push(other.state_key[at]);
            self.has_child.push(other.has_child[at]);
            let tokens = other.token_range(at);
            self.token_ids.extend_from_slice(&other.token_ids[tokens.clone()]);
            self.sampled.extend_from_slice(&other.sampled[tokens.clone()]);
            self.tool_call.extend_from_slice(&other.tool_call[tokens.clone()]);
            self.logprobs.extend_from_slice(&other.logprobs[tokens.clone()]);
            self.entropies.extend_from_slice(&other.entropies[tokens]);
            self.token_start.push(self.token_ids.len() as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::score;
    use crate::forest::tests::{planted, published};
    use crate::rows::tests::forked;

    #[test]
    fn trees_and_nodes_are_numbered_on() {
        let joined = Forest::concat(&[&forked(), &published(true), &Forest::new(), &forked()], None).unwrap();
        assert_eq!((joined.num_trees(), joined.num_nodes(), joined.num_tokens()), (4, 21, 14));
        assert_eq!((&joined.root[..], &joined.prompt[..]), (&[0, 4, 14, 17][..], &[9, 0, 0, 9][..]));
        assert_eq!(joined.parent[17..], [NO_PARENT, 17, 18, 18]);
        assert_eq!(joined.context(20), Ok(vec![1, 2, 3, 6, 7]));
        assert_eq!(joined.leaves(3), Ok(vec![19, 20]));
    }

    #[test]
    fn nodes_come_in_the_order_that_is_asked_for() {
        let forest = forked();
        let joined = Forest::concat(&[&forest, &forest], Some(&[vec![0, 1, 3, 2], vec![0, 1, 2, 3]])).unwrap();
        assert_eq!(joined.reward[2..4], [0.0, 1.0]);
        assert_eq!(joined.context(2), forest.context(3));
        assert_eq!(joined.token_start, [0, 1, 3, 5, 7, 8, 10, 12, 14]);
        assert_eq!(joined.parent[4..], [NO_PARENT, 4, 5, 5]);
    }

    #[test]
    fn a_joined_forest_goes_on_growing() {
        let mut joined = Forest::concat(&[&planted(&[3], &[NO_PARENT], &[0], &[f64::NAN]).unwrap()], None).unwrap();
        assert_eq!(joined.add_tree(4, &[1]), Ok(1));
        assert!(joined.set_reward(0, 1.0).is_err());
        assert!(score(&joined, "grpo", &[]).is_ok());
    }

    #[test]
    fn an_order_names_every_node_once_and_parents_first() {
        let forest = forked();
        let with = |order: &[u32]| Forest::concat(&[&forest], Some(&[order.to_vec()])).unwrap_err();
        assert_eq!(with(&[0, 1, 2]), Error::Length { column: "order", got: 3, expected: 4 });
        assert_eq!(with(&[0, 1, 2, 2]), Error::OrderRepeats { forest: 0, node: 2 });
        assert_eq!(with(&[0, 2, 1, 3]), Error::ParentOrder { node: 2, parent: 1 });
        assert_eq!(with(&[0, 1, 2, 9]), Error::NoNode { node: 9, num_nodes: 4 });
        let uneven = Forest::concat(&[&forest], Some(&[])).unwrap_err();
        assert_eq!(uneven, Error::Length { column: "orders", got: 0, expected: 1 });
    }
}
