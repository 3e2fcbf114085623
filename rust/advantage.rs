//! Values and rewards become advantages: the normaliser, and one function for each estimator.

use crate::error::{Error, Result};
use crate::forest::{Forest, NO_PARENT};
use crate::options::{Center, Estimator, Normaliser, OptionValue, Scale, Variant, resolve};
use crate::value::{LeafSums, ValueRule, anchors, first_trees, leaf_sums, sibling_keys, values};

/// Below this spread of the raw values a group says nothing: its members get exactly 0.
pub const FLAT: f64 = 1e-8;

/// What scoring a forest gives, per node; NaN where `num_leaves` is 0.
#[derive(Debug, Clone)]
pub struct Scores {
    pub estimator: String,
    pub options: Vec<(String, OptionValue)>,
    pub num_leaves: Vec<u32>,
    pub value: Vec<f64>,
    /// Node-level, or the mean over the scored leaves below; 0 on a root.
    pub advantage: Vec<f64>,
    /// Under a leaf-level estimator: A(l) of each scored leaf, NaN elsewhere. Else none.
    pub leaf_advantage: Option<Vec<f64>>,
}

/// Scores a whole forest; a group is the trees of one prompt.
pub fn score(forest: &Forest, estimator: &str, options: &[(String, OptionValue)]) -> Result<Scores> {
    let (kind, options) = resolve(estimator, options)?;
    let LeafSums { sum, num_leaves } = leaf_sums(&forest.parent, &forest.reward);
    let of = match kind {
        Estimator::Grpo { norm } => leaf_level(forest, sum, &num_leaves, grpo(forest, norm)?)?,
        Estimator::TreeGrpo { norm, variant, inter, intra } => {
            leaf_level(forest, sum, &num_leaves, tree_grpo(forest, norm, variant, inter, intra)?)?
        }
        Estimator::Parent { shared_roots, value, norm } => parent(forest, sum, &num_leaves, shared_roots, value, norm)?,
        Estimator::Sibling { shared_roots, value, norm } => {
            sibling(forest, sum, &num_leaves, shared_roots, value, norm)?
        }
    };
    Ok(Scores {
        estimator: estimator.to_owned(),
        options,
        num_leaves,
        value: of.value,
        advantage: of.advantage,
        leaf_advantage: of.leaf_advantage,
    })
}

/// What an estimator gives each node; see [`Scores`].
struct NodeColumns {
    value: Vec<f64>,
    advantage: Vec<f64>,
    leaf_advantage: Option<Vec<f64>>,
}

/// Members of each group, as positions `order[start[g]..start[g + 1]]` of the items with key g; `NO_PARENT` has none.
struct Groups {
    start: Vec<u32>,
    order: Vec<u32>,
}

impl Groups {
    /// A stable counting sort of `items` by `key(item)`.
    fn new(num_keys: usize, items: &[u32], key: impl Fn(u32) -> u32) -> Self {
        let mut start = vec![0u32; num_keys + 1];
        for &item in items {
            start[key(item) as usize + 1] += 1;
        }
        for group in 0..num_keys {
            start[group + 1] += start[group];
        }
        let mut next = start.clone();
        let mut order = vec![0; items.len()];
        for &item in items {
            let place = &mut next[key(item) as usize];
            order[*place as usize] = item;
            *place += 1;
        }
        Self { start, order }
    }

    fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.start.windows(2).map(|pair| &self.order[pair[0] as usize..pair[1] as usize])
    }
}

/// N(x) of one group. Err holds the position of a value that `bernoulli` cannot take.
pub fn normalise(values: &mut [f64], norm: Normaliser) -> std::result::Result<(), usize> {
    if norm.scale == Scale::Bernoulli
        && let Some(position) = values.iter().position(|x| !(0.0..=1.0).contains(x))
    {
        return Err(position);
    }
    if values.len() < 2 {
        if !norm.singleton_raw {
            values.fill(0.0);
        }
        return Ok(());
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if high - low <= FLAT {
        values.fill(0.0);
        return Ok(());
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let scale = match norm.scale {
        Scale::None => 1.0,
        Scale::Std => std_of(values, mean, norm.ddof) + norm.eps,
        Scale::Bernoulli => (mean * (1.0 - mean)).sqrt(),
        Scale::Constant(constant) => constant,
    };
    let stretch = match norm.center {
        Center::Mean => 1.0,
        Center::LeaveOneOut => count / (count - 1.0),
    };
    for value in values {
        *value = stretch * (*value - mean) / scale;
    }
    Ok(())
}

fn std_of(values: &[f64], mean: f64, ddof: u32) -> f64 {
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (values.len() as f64 - f64::from(ddof))).sqrt()
}

/// Normalises `x` (one entry a node) within each group of nodes, in place.
fn normalise_groups(forest: &Forest, groups: &Groups, norm: Normaliser, x: &mut [f64]) -> Result<()> {
    let mut members = Vec::new();
    for group in groups.iter() {
        members.clear();
        members.extend(group.iter().map(|&node| x[node as usize]));
        normalise(&mut members, norm).map_err(|position| {
            let node = group[position];
            Error::NotAProbability { tree: forest.tree[node as usize], node, value: x[node as usize] }
        })?;
        for (&node, &value) in group.iter().zip(&members) {
            x[node as usize] = value;
        }
    }
    Ok(())
}

fn scored_leaves(forest: &Forest) -> Vec<u32> {
    (0..forest.num_nodes() as u32).filter(|&node| !forest.reward[node as usize].is_nan()).collect()
}

/// A(l) = N over the prompt's leaves of R.
fn grpo(forest: &Forest, norm: Normaliser) -> Result<Vec<f64>> {
    let mut advantage = forest.reward.clone();
    let first = first_trees(&forest.prompt);
    let by_prompt = |node: u32| first[forest.tree[node as usize] as usize];
    let groups = Groups::new(forest.num_trees(), &scored_leaves(forest), by_prompt);
    normalise_groups(forest, &groups, norm, &mut advantage)?;
    Ok(advantage)
}

/// A(l) = N over the leaves of its own tree of `x`.
fn within_trees(forest: &Forest, norm: Normaliser, mut x: Vec<f64>) -> Result<Vec<f64>> {
    let groups = Groups::new(forest.num_trees(), &scored_leaves(forest), |node| forest.tree[node as usize]);
    normalise_groups(forest, &groups, norm, &mut x)?;
    Ok(x)
}

/// The paper's: inter-tree plus intra-tree term, or one of its code's variants.
fn tree_grpo(forest: &Forest, norm: Normaliser, variant: Variant, inter: f64, intra: f64) -> Result<Vec<f64>> {
    match variant {
        Variant::IntraOnly => within_trees(forest, norm, forest.reward.clone()),
        Variant::TwoNorm => within_trees(forest, norm, grpo(forest, norm)?),
        Variant::Sum => {
            let group = grpo(forest, norm)?;
            let tree = within_trees(forest, norm, forest.reward.clone())?;
            Ok(group.iter().zip(&tree).map(|(group, tree)| inter * group + intra * tree).collect())
        }
    }
}

/// Leaf-level advantages as they are shown: leaf-mean values, and the mean A(l) below each node.
fn leaf_level(forest: &Forest, sum: Vec<f64>, num_leaves: &[u32], leaf: Vec<f64>) -> Result<NodeColumns> {
    let value = values(forest, sum, num_leaves, ValueRule::LeafMean, &anchors(forest, false))?;
    let below = leaf_sums(&forest.parent, &leaf);
    let mean = |(sum, &num): (f64, &u32)| if num == 0 { f64::NAN } else { sum / f64::from(num) };
    let mut advantage: Vec<f64> = below.sum.into_iter().zip(num_leaves).map(mean).collect();
    clear_roots(forest, num_leaves, &mut advantage);
    Ok(NodeColumns { value, advantage, leaf_advantage: Some(leaf) })
}

fn clear_roots(forest: &Forest, num_leaves: &[u32], advantage: &mut [f64]) {
    for &root in &forest.root {
        advantage[root as usize] = if num_leaves[root as usize] == 0 { f64::NAN } else { 0.0 };
    }
}

/// Nodes with a value, grouped with their siblings.
fn sibling_groups(forest: &Forest, num_leaves: &[u32], keys: &[u32]) -> Groups {
    let valued = |&node: &u32| keys[node as usize] != NO_PARENT && num_leaves[node as usize] > 0;
    let nodes: Vec<u32> = (0..forest.num_nodes() as u32).filter(valued).collect();
    Groups::new(forest.num_nodes(), &nodes, |node| keys[node as usize])
}

/// A(n) = V(n) − V(p(n)), optionally over the spread of the siblings' values.
fn parent(
    forest: &Forest,
    sum: Vec<f64>,
    num_leaves: &[u32],
    shared: bool,
    rule: ValueRule,
    norm: Normaliser,
) -> Result<NodeColumns> {
    let anchors = anchors(forest, shared);
    let value = values(forest, sum, num_leaves, rule, &anchors)?;
    let difference = |(&value_of, &parent): (&f64, &u32)| match value.get(parent as usize) {
        Some(above) => value_of - above,
        None => 0.0,
    };
    let mut advantage: Vec<f64> = value.iter().zip(&forest.parent).map(difference).collect();
    if norm.scale == Scale::Std {
        let groups = sibling_groups(forest, num_leaves, &sibling_keys(forest, &anchors));
        divide_by_spread(&groups, &value, norm, &mut advantage);
    }
    clear_roots(forest, num_leaves, &mut advantage);
    Ok(NodeColumns { value, advantage, leaf_advantage: None })
}

fn divide_by_spread(groups: &Groups, value: &[f64], norm: Normaliser, advantage: &mut [f64]) {
    for group in groups.iter() {
        let members: Vec<f64> = group.iter().map(|&node| value[node as usize]).collect();
        let low = members.iter().copied().fold(f64::INFINITY, f64::min);
        let high = members.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = members.iter().sum::<f64>() / members.len() as f64;
        let spread = std_of(&members, mean, norm.ddof) + norm.eps;
        for &node in group {
            let advantage = &mut advantage[node as usize];
            *advantage = if high - low > FLAT { *advantage / spread } else { 0.0 };
        }
    }
}

/// A(n) = N over the siblings of V.
fn sibling(
    forest: &Forest,
    sum: Vec<f64>,
    num_leaves: &[u32],
    shared: bool,
    rule: ValueRule,
    norm: Normaliser,
) -> Result<NodeColumns> {
    let anchors = anchors(forest, shared);
    let value = values(forest, sum, num_leaves, rule, &anchors)?;
    let groups = sibling_groups(forest, num_leaves, &sibling_keys(forest, &anchors));
    let mut advantage = value.clone();
    normalise_groups(forest, &groups, norm, &mut advantage)?;
    clear_roots(forest, num_leaves, &mut advantage);
    Ok(NodeColumns { value, advantage, leaf_advantage: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::tests::{chain, planted, published};

    fn text(name: &str, value: &str) -> (String, OptionValue) {
        (name.to_owned(), OptionValue::Text(value.to_owned()))
    }

    /// Advantages of the published trees, with eps 0.
    fn advantages(two: bool, estimator: &str, options: &[(&str, &str)]) -> Vec<f64> {
        let mut given = vec![text("eps", "0")];
        given.extend(options.iter().map(|(name, value)| text(name, value)));
        score(&published(two), estimator, &given).unwrap().advantage
    }

    fn close(actual: &[f64], expected: &[f64]) -> bool {
        actual.len() == expected.len() && actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    const STD: Normaliser =
        Normaliser { center: Center::Mean, scale: Scale::Std, ddof: 1, eps: 0.0, singleton_raw: false };

    fn normalised(values: &[f64], norm: Normaliser) -> std::result::Result<Vec<f64>, usize> {
        let mut values = values.to_vec();
        normalise(&mut values, norm).map(|()| values)
    }

    #[test]
    fn published_leaf_level_advantages() {
        let grpo = advantages(false, "grpo", &[]);
        assert!(close(&grpo[3..6], &[-0.912871, 0.912871, -0.912871]));
        let none = advantages(false, "grpo", &[("scale", "none")]);
        assert!(close(&none, &[0.0, 0.0, 1.0 / 6.0, -0.5, 0.5, -0.5, 1.0 / 6.0, 0.5, 0.5, -0.5]));
        let two = advantages(true, "tree-grpo", &[]);
        assert!(close(&two[9..], &[-1.848285, 0.0, -1.642521, 1.642521]));
        let eps = advantages(true, "tree-grpo", &[("eps", "1e-6")]);
        assert!(close(&eps[9..], &[-1.848282, 0.0, -1.642518, 1.642518]));
    }

    #[test]
    fn published_parent_advantages() {
        let below = [0.5, -0.5, 0.0, 0.333333, 0.333333, -0.666667];
        let leaf_mean = advantages(false, "parent", &[]);
        assert!(close(&leaf_mean, &[&[0.0, 0.0, 0.166667, -0.5], &below[..]].concat()));
        let child_mean = advantages(false, "parent", &[("value", "child-mean")]);
        assert!(close(&child_mean, &[&[0.0, 0.111111, 0.277778, -0.388889], &below[..]].concat()));
        let shared = advantages(true, "parent", &[]);
        assert!(close(&shared[..4], &[0.0, 0.0, 0.166667, -0.5]) && close(&shared[10..], &[0.0, -0.5, 0.5]));
    }

    #[test]
    fn published_sibling_advantages() {
        let top = |options: &[(&str, &str)]| advantages(false, "sibling", options)[1..4].to_vec();
        assert!(close(&top(&[("center", "loo")]), &[0.166667, 0.416667, -0.583333]));
        assert!(close(&top(&[("scale", "std"), ("ddof", "0")]), &[0.392232, 0.980581, -1.372813]));
        assert!(close(&top(&[("scale", "std")]), &[0.320256, 0.800641, -1.120897]));
        assert!(close(&top(&[("scale", "bernoulli")]), &[0.227921, 0.569803, -0.797724]));
        let shared = advantages(true, "sibling", &[]);
        assert!(close(&shared[1..4], &[0.066667, 0.233333, -0.433333]));
        assert!(close(&shared[11..], &[-0.433333, 0.566667]));
    }

    #[test]
    fn a_group_of_one_is_zero_or_raw() {
        assert_eq!(normalised(&[], STD), Ok(vec![]));
        assert_eq!(normalised(&[0.7], STD), Ok(vec![0.0]));
        assert_eq!(normalised(&[0.7], Normaliser { singleton_raw: true, ..STD }), Ok(vec![0.7]));
    }

    #[test]
    fn a_spread_that_is_rounding_is_exactly_zero() {
        assert_eq!(normalised(&[0.1 + 0.2, 0.3], STD), Ok(vec![0.0, 0.0]));
        assert_eq!(normalised(&[1.0, 1.0 + FLAT / 2.0, 1.0], STD), Ok(vec![0.0; 3]));
    }

    #[test]
    fn leave_one_out_and_constants_stretch() {
        let plain = Normaliser { scale: Scale::None, ..STD };
        let loo = Normaliser { center: Center::LeaveOneOut, ..plain };
        assert_eq!(normalised(&[0.0, 0.0, 3.0], loo), Ok(vec![-1.5, -1.5, 3.0]));
        let constant = Normaliser { scale: Scale::Constant(4.0), ..plain };
        assert_eq!(normalised(&[0.0, 2.0], constant), Ok(vec![-0.25, 0.25]));
    }

    #[test]
    fn bernoulli_takes_probabilities_only() {
        let norm = Normaliser { scale: Scale::Bernoulli, ..STD };
        assert_eq!(normalised(&[0.0, 1.0], norm), Ok(vec![-1.0, 1.0]));
        assert_eq!(normalised(&[0.0, 1.5], norm), Err(1));
        assert_eq!(normalised(&[-0.1], norm), Err(0));
    }

    #[test]
    fn a_node_without_scored_leaves_has_no_advantage() {
        let nan = f64::NAN;
        let forest = planted(&[0, 0], &[NO_PARENT, 0, 0, 2, NO_PARENT], &[0, 0, 0, 0, 1], &[nan, 1.0, nan, nan, nan]);
        let forest = forest.unwrap();
        for estimator in crate::options::ESTIMATORS {
            let advantage = score(&forest, estimator, &[]).unwrap().advantage;
            assert_eq!(advantage[..2], [0.0, 0.0]);
            assert!(advantage[2..].iter().all(|advantage| advantage.is_nan()));
        }
    }

    #[test]
    fn a_chain_of_a_million_nodes_needs_no_recursion() {
        let forest = chain(1_000_000);
        for estimator in crate::options::ESTIMATORS {
            assert!(score(&forest, estimator, &[]).unwrap().advantage.iter().all(|&advantage| advantage == 0.0));
        }
    }
}
