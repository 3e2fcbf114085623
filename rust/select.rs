//! Seeds, nodes drawn alike, leaves to keep: draws that depend on their key alone, for ever.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// SplitMix64 (Steele, Lea and Flood 2014), started from a hash of a key. Twenty lines that never change are worth
/// more here than a crate: a draw written into a file today must come out the same in years.
#[derive(Debug, Clone)]
pub struct KeyedRng(u64);

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl KeyedRng {
    /// A generator for this key and purpose; keys of another length or order give unrelated draws.
    pub fn new(purpose: u64, key: &[i64]) -> Self {
        let start = mix(purpose.wrapping_add(GAMMA)).wrapping_add(key.len() as u64);
        Self(key.iter().fold(start, |state, &part| mix(state.wrapping_add(GAMMA) ^ mix(part as u64))))
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// What `next_u64` gives after `skipped` others.
    pub fn after(&self, skipped: u32) -> u64 {
        mix(self.0.wrapping_add(GAMMA.wrapping_mul(u64::from(skipped) + 1)))
    }

    /// A uniform draw from [0, 1), one of 2^53.
    pub fn unit(&mut self) -> f64 {
        unit(self.next_u64())
    }

    /// A uniform draw from 0 to `bound` − 1, by rejection.
    pub fn below(&mut self, bound: u64) -> u64 {
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let draw = self.next_u64();
            if draw < limit {
                return draw % bound;
            }
        }
    }
}

/// Bits -> [0, 1), by the first 53.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

const SEED: u64 = 1;
const SELECT: u64 = 2;
const KEEP: u64 = 3;
/// Draws by scores, and each candidate's own draw; see [`crate::draws`].
pub(crate) const BY_SCORES: u64 = 4;
pub(crate) const EACH: u64 = 5;

/// A seed in 0 .. 2^63 for whatever the key names.
pub fn derive_seed(key: &[i64]) -> u64 {
    KeyedRng::new(SEED, key).next_u64() >> 1
}

/// The most that one call draws; what draws come to takes memory, the candidates take none.
pub const MAX_DRAWS: u32 = 1 << 24;

/// Draws `n` of `num_candidates` positions uniformly. Without replacement and with fewer candidates: all of them.
pub fn select_uniform(num_candidates: u32, n: u32, replacement: bool, key: &[i64]) -> Result<Vec<u32>> {
    if num_candidates == 0 && n > 0 {
        return Err(Error::TooFew { asked: n as usize, available: 0 });
    }
    let mut rng = KeyedRng::new(SELECT, key);
    if replacement {
        let num_draws = bounded(n)?;
        return Ok((0..num_draws).map(|_| rng.below(u64::from(num_candidates)) as u32).collect());
    }
    sample(num_candidates, n.min(num_candidates), &mut rng)
}

/// Keeps `k` of `num_leaves` positions, uniformly without replacement, in ascending order.
pub fn keep_leaves(num_leaves: u32, k: u32, key: &[i64]) -> Result<Vec<u32>> {
    if k > num_leaves {
        return Err(Error::TooFew { asked: k as usize, available: num_leaves as usize });
    }
    let mut kept = sample(num_leaves, k, &mut KeyedRng::new(KEEP, key))?;
    kept.sort_unstable();
    Ok(kept)
}

pub(crate) fn bounded(num_draws: u32) -> Result<u32> {
    if num_draws <= MAX_DRAWS { Ok(num_draws) } else { Err(Error::Full(MAX_DRAWS as usize, "draws")) }
}

/// The first `count` places of a Fisher-Yates shuffle, of which only those that moved are held.
fn sample(population: u32, count: u32, rng: &mut KeyedRng) -> Result<Vec<u32>> {
    let mut moved = HashMap::new();
    let draw = |place| {
        let other = place + rng.below(u64::from(population - place)) as u32;
        let here = moved.remove(&place).unwrap_or(place);
        if other == place { here } else { moved.insert(other, here).unwrap_or(other) }
    };
    Ok((0..bounded(count)?).map(draw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        let mut rng = KeyedRng(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn draws_never_change() {
        assert_eq!(derive_seed(&[1, 2, 3, 0, 1, 2]), 4_514_634_843_848_295_342);
        assert_eq!(select_uniform(10, 6, true, &[1, 2, 3]), Ok(vec![1, 8, 7, 3, 8, 1]));
        assert_eq!(select_uniform(10, 6, false, &[1, 2, 3]), Ok(vec![1, 9, 7, 6, 8, 3]));
        assert_eq!(keep_leaves(10, 6, &[1, 2, 3]), Ok(vec![1, 2, 3, 4, 7, 8]));
    }

    #[test]
    fn keys_of_another_order_or_length_give_other_draws() {
        let keys: [&[i64]; 5] = [&[], &[0], &[0, 0], &[0, 1], &[1, 0]];
        let seeds: std::collections::HashSet<u64> = keys.iter().map(|key| derive_seed(key)).collect();
        assert_eq!(seeds.len(), keys.len());
    }

    #[test]
    fn without_replacement_few_candidates_all_come() {
        let mut drawn = select_uniform(3, 9, false, &[5]).unwrap();
        drawn.sort_unstable();
        assert_eq!(drawn, [0, 1, 2]);
    }

    #[test]
    fn what_is_not_there_cannot_be_chosen() {
        assert_eq!(select_uniform(0, 1, true, &[]), Err(Error::TooFew { asked: 1, available: 0 }));
        assert_eq!(select_uniform(0, 0, true, &[]), Ok(vec![]));
        assert_eq!(keep_leaves(2, 3, &[]), Err(Error::TooFew { asked: 3, available: 2 }));
    }

    #[test]
    fn a_sample_is_the_beginning_of_a_shuffle() {
        for (population, count) in [(1, 1), (7, 7), (20, 5), (300, 200)] {
            let mut rng = KeyedRng::new(SELECT, &[4]);
            let mut positions: Vec<u32> = (0..population).collect();
            for place in 0..count {
                let other = place + rng.below(u64::from(population - place)) as u32;
                positions.swap(place as usize, other as usize);
            }
            assert_eq!(select_uniform(population, count, false, &[4]).unwrap(), positions[..count as usize]);
        }
    }

    #[test]
    fn a_population_takes_no_memory_and_too_many_draws_are_refused() {
        assert_eq!(select_uniform(u32::MAX, 3, false, &[1]).unwrap().len(), 3);
        assert_eq!(keep_leaves(u32::MAX, 2, &[1]).unwrap().len(), 2);
        let full = Err(Error::Full(MAX_DRAWS as usize, "draws"));
        assert_eq!(select_uniform(u32::MAX, u32::MAX, false, &[1]), full);
        assert_eq!(select_uniform(1, u32::MAX, true, &[1]), full);
        assert_eq!(keep_leaves(u32::MAX, u32::MAX, &[1]), full);
    }

    #[test]
    fn each_pair_of_leaves_is_kept_about_as_often() {
        let mut counts = [0_u32; 16];
        for prompt in 0..6000 {
            let kept = keep_leaves(4, 2, &[0, prompt]).unwrap();
            counts[(kept[0] * 4 + kept[1]) as usize] += 1;
        }
        let pairs: Vec<u32> = counts.into_iter().filter(|&count| count > 0).collect();
        assert_eq!(pairs.len(), 6);
        assert!(pairs.iter().all(|count| (850..1150).contains(count)), "{pairs:?}");
    }
}
