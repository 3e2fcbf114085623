//! Pairs of a group and tokens -> numbers: one for all that are equal, in the order in which they first come.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use crate::select::mix;

/// A hash table whose hashes are values of a polynomial at a point that nobody knows: whatever the tokens are, they
/// hardly ever collide. Equal hashes are compared in full.
pub(crate) struct Numbering<'a> {
    point: u64,
    /// Number + 1, 0 = free; a power of two of them, at least half of which are free.
    slots: Vec<u32>,
    hashes: Vec<u64>,
    pairs: Vec<(u32, &'a [u32])>,
}

/// 2^61 − 1.
const PRIME: u64 = (1 << 61) - 1;

impl<'a> Numbering<'a> {
    /// Of about so many different pairs; more may come.
    pub fn with_capacity(num: usize) -> Self {
        let point = RandomState::new().build_hasher().finish() % PRIME;
        let slots = vec![0; (2 * num).next_power_of_two().max(16)];
        Self { point, slots, hashes: Vec::with_capacity(num), pairs: Vec::with_capacity(num) }
    }

    /// How many different ones came.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// The number of a pair: its own, or that of the equal one before.
    pub fn of(&mut self, group: u32, tokens: &'a [u32]) -> u32 {
        let hash = self.hash(group, tokens);
        let mut at = self.first_slot(hash);
        while let Some(number) = self.slots[at].checked_sub(1) {
            if self.hashes[number as usize] == hash && self.pairs[number as usize] == (group, tokens) {
                return number;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        let number = self.pairs.len() as u32;
        self.slots[at] = number + 1;
        self.hashes.push(hash);
        self.pairs.push((group, tokens));
        if 2 * self.pairs.len() > self.slots.len() {
            self.grow();
        }
        number
    }

    /// A token is a coefficient, and the group is the first one: none is 0, so that lengths tell apart too.
    fn hash(&self, group: u32, tokens: &[u32]) -> u64 {
        let step = |hash: u64, &token: &u32| {
            let product = u128::from(hash) * u128::from(self.point) + u128::from(token) + 1;
            let folded = (product as u64 & PRIME) + (product >> 61) as u64;
            if folded < PRIME { folded } else { folded - PRIME }
        };
        mix(tokens.iter().fold(u64::from(group) + 1, step))
    }

    fn first_slot(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    fn grow(&mut self) {
        self.slots = vec![0; 2 * self.slots.len()];
        for (&hash, number) in self.hashes.iter().zip(1..) {
            let mut at = self.first_slot(hash);
            while self.slots[at] != 0 {
                at = (at + 1) & (self.slots.len() - 1);
            }
            self.slots[at] = number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pairs_have_one_number_and_others_the_next() {
        let mut numbering = Numbering::with_capacity(0);
        let pairs: [(u32, &[u32]); 7] = [(0, &[]), (0, &[0]), (1, &[]), (0, &[]), (0, &[0, 0]), (1, &[0]), (0, &[0])];
        assert_eq!(pairs.map(|(group, tokens)| numbering.of(group, tokens)), [0, 1, 2, 0, 3, 4, 1]);
        assert_eq!(numbering.len(), 5);
    }

    #[test]
    fn the_largest_tokens_and_groups_stay_apart_while_the_table_grows() {
        let tokens: Vec<u32> = (0..5000).map(|token| u32::MAX - token).collect();
        let mut numbering = Numbering::with_capacity(1);
        for round in 0..2 {
            for (length, number) in (0..2500).zip(0..) {
                assert_eq!(numbering.of(u32::MAX, &tokens[length..2 * length]), number, "{round}");
            }
        }
    }

    #[test]
    fn a_collision_is_told_apart_by_its_tokens() {
        let mut numbering = Numbering { point: 0, ..Numbering::with_capacity(4) };
        let lasts: Vec<[u32; 2]> = (0..50).map(|first| [first, 7]).collect();
        assert!(lasts.iter().all(|tokens| numbering.hash(9, tokens) == numbering.hash(9, &[0, 7])));
        for (tokens, number) in lasts.iter().zip(0..) {
            assert_eq!(numbering.of(9, tokens), number);
        }
    }
}
