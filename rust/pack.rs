//! Forest + scores -> the training layout: every token of the scored paths in depth-first order, and its targets.

use crate::advantage::Scores;
use crate::credit::{Credit, Weighing, leaf_weights, node_credits};
use crate::error::{Error, Result};
use crate::forest::{Forest, NO_PARENT, row_id};
use crate::rows::{Part, row};
use crate::token_tree::TokenTree;
use crate::trie::{Order, Place, Span, TOP, Trie};

/// What a batch of scored paths takes to train.
///
/// Shared: paths that begin with the same tokens compute them once, whichever turns, trees or prompts they belong to.
/// Else each scored leaf has a row of its own, longest first. Nodes without a scored leaf below are left out.
#[derive(Debug, Clone)]
pub struct Layout {
    pub tree: TokenTree,
    /// Length of each scored leaf's path, in the order of leaf ids.
    pub path_tokens: Vec<u32>,
    /// The sum of the targets' weights: the denominator of a mean over tokens.
    pub weighted_tokens: f64,
    pub shared: bool,
    pub(crate) turns: Vec<Turn>,
    /// Per target: the sampled token's index, and its sampling log-probability (nats).
    pub(crate) target_token: Vec<u32>,
    pub(crate) target_logprob: Vec<f32>,
    /// Per target: whether it is part of a tool call.
    pub(crate) target_in_call: Vec<bool>,
}

/// A turn with targets; in rows, once for each row that it is part of.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub targets: std::ops::Range<usize>,
    /// Index of its last token: where that is computed, its whole path is present.
    pub last_token: u32,
    pub row: u32,
    /// Of its tool calls, and of the rest: masked terms are not in that. Their weights are the same.
    pub credit: Credit,
    pub unmasked: Credit,
}

impl Turn {
    /// Of a target.
    pub fn credit_of(&self, in_call: bool) -> &Credit {
        if in_call { &self.credit } else { &self.unmasked }
    }
}

/// Where the tokens of a node stand in the trie: the spans from the last one's `spans_end` to this one's.
struct Placed {
    node: u32,
    row: u32,
    spans_end: usize,
    credit: Credit,
    unmasked: Credit,
}

impl Layout {
    /// Targets of all turns.
    pub fn num_targets(&self) -> usize {
        self.target_token.len()
    }

    /// Adds a node's turn: a token sampled at a start has nothing in front that predicts it, and is not trained.
    fn push_turn(&mut self, forest: &Forest, placed: &Placed, spans: &[Span], order: &Order) {
        let first_target = self.num_targets();
        let mut token = forest.token_range(placed.node as usize).start;
        let mut end = 0;
        for &span in spans {
            let index = order.index(span);
            end = index + span.num_tokens;
            let is_start = self.tree.parent_token[index as usize] == NO_PARENT;
            self.push_targets(forest, token, index..end, usize::from(is_start));
            token += span.num_tokens as usize;
        }
        let targets = first_target..self.num_targets();
        if !targets.is_empty() {
            self.weighted_tokens += placed.credit.weight * targets.len() as f64;
            let Placed { row, credit, unmasked, .. } = *placed;
            self.turns.push(Turn { targets, last_token: end - 1, row, credit, unmasked });
        }
    }

    /// Adds the sampled ones of the forest's tokens from `token` on, which stand at `indices`, but for the first `skip`.
    fn push_targets(&mut self, forest: &Forest, token: usize, indices: std::ops::Range<u32>, skip: usize) {
        let sampled = &forest.sampled[token..token + indices.len()];
        let mut from = skip;
        while let Some(start) = sampled[from..].iter().position(|&sampled| sampled).map(|gap| from + gap) {
            let end = sampled[start..].iter().position(|&sampled| !sampled).map_or(sampled.len(), |len| start + len);
            self.target_token.extend(indices.start + start as u32..indices.start + end as u32);
            self.target_logprob.extend_from_slice(&forest.logprobs[token + start..token + end]);
            self.target_in_call.extend_from_slice(&forest.tool_call[token + start..token + end]);
            from = end;
        }
    }
}

/// Lays out the scored paths of a forest, or of the trees of these prompts; a prompt without a tree adds nothing.
pub fn pack(
    forest: &Forest,
    scores: &Scores,
    weighing: Weighing,
    shared: bool,
    prompts: Option<&[u32]>,
) -> Result<Layout> {
    check(forest, scores, weighing.prefix_weight)?;
    if scores.weight.is_some() && weighing.row_mean {
        return Err(Error::OwnWeights(scores.label.clone(), "row_mean", "false"));
    }
    let chosen = chosen_trees(forest, prompts);
    let leaves = leaf_paths(forest, &chosen);
    let path_tokens: usize = leaves.iter().map(|&(_, length)| length).sum();
    let num_tokens = if shared { path_tokens.min(forest.num_tokens()) } else { path_tokens };
    row_id(num_tokens, "tokens in a layout")?;
    let mut paths = Paths { trie: Trie::with_capacity(num_tokens), spans: vec![], placed: vec![] };
    let leaf_weight = leaf_weights(forest, weighing.row_mean);
    if shared {
        let credits = |levels| node_credits(forest, scores, levels, weighing.prefix_weight, &leaf_weight);
        let total = credits(scores.levels());
        let unmasked = scores.unmasked.is_some().then(|| credits(scores.unmasked_levels()));
        paths.add_nodes(forest, &total, unmasked.as_ref().unwrap_or(&total), &chosen);
    } else {
        paths.add_rows(forest, scores, weighing.prefix_weight, &leaves, &leaf_weight)?;
    }
    let (tree, order) = paths.trie.flatten();
    let path_tokens = leaves.iter().map(|&(_, length)| length as u32).collect();
    let mut layout = Layout {
        tree,
        path_tokens,
        weighted_tokens: 0.0,
        shared,
        turns: vec![],
        target_token: vec![],
        target_logprob: vec![],
        target_in_call: vec![],
    };
    let mut spans_start = 0;
    for placed in &paths.placed {
        layout.push_turn(forest, placed, &paths.spans[spans_start..placed.spans_end], &order);
        spans_start = placed.spans_end;
    }
    Ok(layout)
}

/// Refuses scores that are not of this forest as it stands, and prefix weights without meaning.
pub(crate) fn check(forest: &Forest, scores: &Scores, prefix_weight: f64) -> Result<()> {
    if !(prefix_weight.is_finite() && prefix_weight >= 0.0) {
        let (got, expected) = (prefix_weight.to_string(), "a finite number, 0 or more".to_owned());
        return Err(Error::OptionValue { name: "prefix_weight".to_owned(), got, expected });
    }
    let most_leaves = forest.root.iter().map(|&root| scores.num_leaves.get(root as usize)).max().flatten();
    if !f64::from(most_leaves.copied().unwrap_or(0)).powf(prefix_weight).is_finite() {
        let (got, expected) = (prefix_weight.to_string(), "one whose weights are finite".to_owned());
        return Err(Error::OptionValue { name: "prefix_weight".to_owned(), got, expected });
    }
    if scores.weight.is_some() && prefix_weight != 1.0 {
        return Err(Error::OwnWeights(scores.label.clone(), "prefix_weight", "1"));
    }
    scores.check_of(forest)
}

/// Whether each tree's prompt is asked for.
fn chosen_trees(forest: &Forest, prompts: Option<&[u32]>) -> Vec<bool> {
    let Some(prompts) = prompts else { return vec![true; forest.num_trees()] };
    let prompts: std::collections::HashSet<u32> = prompts.iter().copied().collect();
    forest.prompt.iter().map(|prompt| prompts.contains(prompt)).collect()
}

/// The scored leaves of the chosen trees, each with the number of tokens from the root.
pub(crate) fn leaf_paths(forest: &Forest, chosen: &[bool]) -> Vec<(u32, usize)> {
    let mut length = vec![0; forest.num_nodes()];
    let mut leaves = vec![];
    for node in 0..forest.num_nodes() {
        let above = length.get(forest.parent[node] as usize).copied().unwrap_or(0);
        length[node] = above + forest.token_range(node).len();
        if chosen[forest.tree[node] as usize] && !forest.reward[node].is_nan() {
            leaves.push((node as u32, length[node]));
        }
    }
    leaves
}

/// All nodes to train, put into a trie one after the other.
struct Paths {
    trie: Trie,
    spans: Vec<Span>,
    placed: Vec<Placed>,
}

impl Paths {
    /// Every node with a scored leaf below, once; the others have no credit.
    fn add_nodes(&mut self, forest: &Forest, credits: &[Option<Credit>], unmasked: &[Option<Credit>], chosen: &[bool]) {
        let mut places: Vec<Place> = vec![TOP; forest.num_nodes()];
        for (node, (credit, unmasked)) in credits.iter().zip(unmasked).enumerate() {
            let (Some(credit), Some(unmasked)) = (*credit, *unmasked) else { continue };
            if !chosen[forest.tree[node] as usize] {
                continue;
            }
            let above = places.get(forest.parent[node] as usize).copied().unwrap_or(TOP);
            places[node] = self.trie.add(above, &forest.token_ids[forest.token_range(node)], &mut self.spans);
            self.place(node as u32, 0, credit, unmasked);
        }
    }

    /// Every scored leaf's path on its own, longest first.
    fn add_rows(
        &mut self,
        forest: &Forest,
        scores: &Scores,
        prefix_weight: f64,
        leaves: &[(u32, usize)],
        leaf_weight: &[f64],
    ) -> Result<()> {
        let mut longest_first = leaves.to_vec();
        longest_first.sort_by_key(|&(_, length)| std::cmp::Reverse(length));
        for (&(leaf, _), number) in longest_first.iter().zip(0..) {
            let mut at = TOP;
            for Part { node, advantage, unmasked, weight } in row(forest, scores, prefix_weight, leaf)? {
                at = self.trie.append(at, &forest.token_ids[forest.token_range(node as usize)], &mut self.spans);
                let weight = weight * leaf_weight[leaf as usize];
                self.place(node, number, Credit::of(weight, advantage), Credit::of(weight, unmasked));
            }
        }
        Ok(())
    }

    fn place(&mut self, node: u32, row: u32, credit: Credit, unmasked: Credit) {
        self.placed.push(Placed { node, row, spans_end: self.spans.len(), credit, unmasked });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::score;
    use crate::forest::tests::published;
    use crate::options::OptionValue;
    use crate::rows::tests::forked;

    /// With rewards 1 and 0: A(l) = ±0.5.
    fn laid_out(prefix_weight: f64, shared: bool) -> Layout {
        laid_out_as(Weighing { prefix_weight, row_mean: false }, shared)
    }

    fn laid_out_as(weighing: Weighing, shared: bool) -> Layout {
        let forest = forked();
        let scores = score(&forest, "grpo", &[("scale".to_owned(), OptionValue::Text("none".to_owned()))]).unwrap();
        pack(&forest, &scores, weighing, shared, None).unwrap()
    }

    fn credits(layout: &Layout) -> Vec<(f64, f64, f64)> {
        layout.turns.iter().map(|turn| (turn.credit.gain, turn.credit.penalty, turn.credit.weight)).collect()
    }

    #[test]
    fn a_shared_turn_is_computed_once_and_credited_for_all_its_leaves() {
        let layout = laid_out(1.0, true);
        assert_eq!(layout.tree.token_ids, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(layout.path_tokens, [5, 5]);
        assert_eq!(layout.target_token, [1, 3, 5]);
        assert_eq!(layout.target_logprob, [-0.5; 3]);
        assert_eq!(credits(&layout), [(0.5, -0.5, 2.0), (0.5, 0.0, 1.0), (0.0, -0.5, 1.0)]);
        assert_eq!(layout.weighted_tokens, 4.0);
        assert_eq!(credits(&laid_out(0.0, true))[0], (0.25, -0.25, 1.0));
    }

    #[test]
    fn in_rows_every_leaf_brings_its_own_part() {
        let layout = laid_out(0.0, false);
        assert_eq!(layout.tree.token_ids, [1, 2, 3, 4, 5, 1, 2, 3, 6, 7]);
        assert_eq!(layout.target_token, [1, 3, 6, 8]);
        assert_eq!(layout.turns.iter().map(|turn| turn.row).collect::<Vec<_>>(), [0, 0, 1, 1]);
        assert_eq!(credits(&layout), [(0.25, 0.0, 0.5), (0.5, 0.0, 1.0), (0.0, -0.25, 0.5), (0.0, -0.5, 1.0)]);
        assert_eq!(layout.weighted_tokens, 3.0);
    }

    #[test]
    fn with_row_means_a_rows_targets_share_its_weight() {
        let layout = laid_out_as(Weighing { prefix_weight: 1.0, row_mean: true }, true); // two targets a row
        assert_eq!(credits(&layout), [(0.25, -0.25, 1.0), (0.25, 0.0, 0.5), (0.0, -0.25, 0.5)]);
        let parts = layout.turns.iter().map(|turn| (turn.credit.gain_weight, turn.credit.penalty_weight));
        assert_eq!(parts.collect::<Vec<_>>(), [(0.5, 0.5), (0.5, 0.0), (0.0, 0.5)]);
        assert_eq!(layout.weighted_tokens, 2.0);
    }

    #[test]
    fn only_the_trees_of_the_prompts_asked_for_are_laid_out() {
        let forest = forked();
        let scores = score(&forest, "parent", &[]).unwrap();
        let num_tokens = |prompts: &[u32]| {
            pack(&forest, &scores, Weighing::default(), true, Some(prompts)).unwrap().tree.num_tokens()
        };
        assert_eq!((num_tokens(&[9]), num_tokens(&[1, 9]), num_tokens(&[1]), num_tokens(&[])), (7, 7, 0, 0));
    }

    #[test]
    fn scores_of_another_forest_are_refused() {
        let scores = score(&forked(), "grpo", &[]).unwrap();
        assert_eq!(
            pack(&published(false), &scores, Weighing::default(), true, None).unwrap_err(),
            Error::ForeignScores
        );
    }
}
