//! Scored leaves in an order in which those below any node lie side by side, and sums over some of them.

use crate::forest::Forest;

/// Where the scored leaves below each node stand: `start[n]..start[n] + num_leaves[n]`.
pub(crate) struct LeavesBelow<'a> {
    num_leaves: &'a [u32],
    start: Vec<u32>,
    /// The leaf at each place.
    leaves: Vec<u32>,
}

/// Σ w(l) (A(l) + a) and Σ w(l) over the leaves of a node with A(l) + a > 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Positive {
    pub sum: f64,
    pub weight: f64,
}

impl<'a> LeavesBelow<'a> {
    /// A parent hands out the places of its leaves to its children, in their order.
    pub fn new(forest: &Forest, num_leaves: &'a [u32]) -> Self {
        let mut start = vec![0; forest.num_nodes()];
        let mut next = vec![0; forest.num_nodes()];
        let (mut next_root, mut leaves) = (0, vec![]);
        for (node, &parent) in forest.parent.iter().enumerate() {
            let place = next.get_mut(parent as usize).unwrap_or(&mut next_root);
            start[node] = *place;
            *place += num_leaves[node];
            next[node] = start[node];
        }
        leaves.resize(next_root as usize, 0);
        for (leaf, _) in forest.reward.iter().enumerate().filter(|(_, reward)| !reward.is_nan()) {
            leaves[start[leaf] as usize] = leaf as u32;
        }
        Self { num_leaves, start, leaves }
    }

    /// Per node n its [`Positive`] for a(n): leaves enter a tree of sums from the largest A(l) down, and each node reads
    /// it once all of its own are in. O((nodes + leaves) log), and exactly 0 where no leaf counts.
    pub fn positive(&self, leaf_weight: &[f64], leaf: &[f64], own: &[f64]) -> Vec<Positive> {
        let mut places: Vec<u32> = (0..self.leaves.len() as u32).collect();
        let advantage = |place: u32| leaf[self.leaves[place as usize] as usize];
        places.sort_unstable_by(|&a, &b| advantage(b).total_cmp(&advantage(a)));
        let mut nodes: Vec<u32> = (0..own.len() as u32).filter(|&node| self.num_leaves[node as usize] > 0).collect();
        nodes.sort_unstable_by(|&a, &b| own[a as usize].total_cmp(&own[b as usize]));
        let mut sums = Sums::new(places.len());
        let mut entering = places.into_iter().peekable();
        let mut positive = vec![Positive::default(); own.len()];
        for node in nodes {
            let a = own[node as usize];
            while let Some(place) = entering.next_if(|&place| advantage(place) + a > 0.0) {
                let weight = leaf_weight[self.leaves[place as usize] as usize];
                sums.set(place as usize, Positive { sum: weight * advantage(place), weight });
            }
            let start = self.start[node as usize] as usize;
            let Positive { sum, weight } = sums.over(start, start + self.num_leaves[node as usize] as usize);
            positive[node as usize] = Positive { sum: (sum + weight * a).max(0.0), weight };
        }
        positive
    }
}

/// A binary tree over places whose inner nodes hold the sums of what is below.
struct Sums {
    size: usize,
    node: Vec<Positive>,
}

impl Sums {
    fn new(size: usize) -> Self {
        Self { size, node: vec![Positive::default(); 2 * size] }
    }

    fn set(&mut self, place: usize, value: Positive) {
        let mut at = self.size + place;
        self.node[at] = value;
        while at > 1 {
            at /= 2;
            self.node[at] = self.node[2 * at].plus(self.node[2 * at + 1]);
        }
    }

    fn over(&self, start: usize, end: usize) -> Positive {
        let (mut low, mut high) = (start + self.size, end + self.size);
        let mut total = Positive::default();
        while low < high {
            if low % 2 == 1 {
                total = total.plus(self.node[low]);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                total = total.plus(self.node[high]);
            }
            (low, high) = (low / 2, high / 2);
        }
        total
    }
}

impl Positive {
    fn plus(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum, weight: self.weight + other.weight }
    }
}
