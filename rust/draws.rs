//! Scores -> which candidates are drawn, pure in a key. Scores may be infinite; −∞ is never drawn.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::select::{BY_SCORES, EACH, KeyedRng, bounded, unit};

/// Draws up to `n` places by their scores, the best first.
///
/// At `temperature` 0 the `n` highest, ties in an order of the key. Above it each draw falls on a place with a chance in
/// proportion to exp(score / temperature): without `replacement` no place twice (the `n` highest of
/// score / temperature + Gumbel noise), with it `n` draws that do not know of each other.
pub fn draw_by_scores(scores: &[f64], n: u32, key: &[i64], temperature: f64, replacement: bool) -> Result<Vec<u32>> {
    check(scores, n, temperature, replacement)?;
    let mut rng = KeyedRng::new(BY_SCORES, key);
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // from here on 0 is the highest, so that nothing overflows upwards
    let warmed = |score: f64| if score == highest { 0.0 } else { (score - highest) / temperature };
    if replacement {
        let weight = |&score: &f64| if score == f64::NEG_INFINITY { 0.0 } else { warmed(score).exp() };
        return in_proportion(scores.iter().map(weight), bounded(n)?, &mut rng);
    }
    let drawn = scores.iter().zip(0..).filter(|(score, _)| **score != f64::NEG_INFINITY);
    let ranked = drawn.map(|(&score, place)| {
        let rank = if temperature == 0.0 { score } else { warmed(score) + gumbel(rng.after(place)) };
        Ranked { rank: rank + 0.0, place }
    });
    Ok(highest_of(ranked, n as usize, &rng))
}

/// Draws each place by itself with its `chance`; of those drawn up to `n`, the likeliest first, ties by the key.
pub fn draw_each(chances: &[f64], n: u32, key: &[i64]) -> Result<Vec<u32>> {
    let mut rng = KeyedRng::new(EACH, key);
    let left = |&chance: &f64| if rng.unit() < chance { chance } else { f64::NEG_INFINITY };
    let scores: Vec<f64> = chances.iter().map(left).collect();
    draw_by_scores(&scores, n, key, 0.0, false)
}

fn check(scores: &[f64], n: u32, temperature: f64, replacement: bool) -> Result<()> {
    if let Some(place) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::ScoreIsNan { place });
    }
    if !(temperature.is_finite() && temperature >= 0.0) {
        let got = temperature.to_string();
        return Err(Error::Given { name: "temperature", got, expected: "a finite number, 0 or more" });
    }
    if replacement && temperature == 0.0 {
        let got = "true at temperature 0".to_owned();
        return Err(Error::Given { name: "replacement", got, expected: "a temperature above 0 beside it" });
    }
    if scores.is_empty() && n > 0 {
        return Err(Error::TooFew { asked: n as usize, available: 0 });
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Ranked {
    rank: f64,
    place: u32,
}

impl Ranked {
    /// Equal ranks are in the order of their places' numbers.
    fn higher_first(&self, other: &Self, rng: &KeyedRng) -> Ordering {
        let tie = || rng.after(other.place).cmp(&rng.after(self.place)).then(self.place.cmp(&other.place));
        other.rank.total_cmp(&self.rank).then_with(tie)
    }
}

/// The first `n`, in order. Never holds more than twice as many: whatever comes behind the last of them goes by.
fn highest_of(ranked: impl Iterator<Item = Ranked>, n: usize, rng: &KeyedRng) -> Vec<u32> {
    let by_rank = |a: &Ranked, b: &Ranked| a.higher_first(b, rng);
    let (mut highest, mut lowest) = (vec![], f64::NEG_INFINITY);
    for ranked in ranked.filter(|_| n > 0) {
        if ranked.rank >= lowest {
            highest.push(ranked);
        }
        if highest.len() == 2 * n {
            highest.select_nth_unstable_by(n - 1, by_rank);
            highest.truncate(n);
            lowest = highest[n - 1].rank;
        }
    }
    highest.sort_unstable_by(by_rank);
    highest.iter().take(n).map(|ranked| ranked.place).collect()
}

/// Draws with replacement; none where every weight is 0.
fn in_proportion(weights: impl Iterator<Item = f64>, num_draws: u32, rng: &mut KeyedRng) -> Result<Vec<u32>> {
    let mut total = 0.0;
    let ends: Vec<f64> = weights
        .map(|weight| {
            total += weight;
            total
        })
        .collect();
    if total == 0.0 {
        return Ok(vec![]);
    }
    let last = ends.partition_point(|&end| end < total);
    let draw = |_| {
        let at = rng.unit() * total;
        ends.partition_point(|&end| end <= at).min(last) as u32
    };
    Ok((0..num_draws).map(draw).collect())
}

/// Gumbel noise of 64 uniform bits: −ln(−ln u), u in (0, 1). More bits, more noise.
fn gumbel(bits: u64) -> f64 {
    let u = unit(bits) + 0.5 / (1_u64 << 53) as f64;
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f64 = f64::INFINITY;

    #[test]
    fn at_temperature_0_the_highest_come_in_their_order() {
        let scores = [0.5, -1.0, INF, 2.0, -INF];
        assert_eq!(draw_by_scores(&scores, 2, &[1], 0.0, false), Ok(vec![2, 3]));
        assert_eq!(draw_by_scores(&scores, 9, &[1], 0.0, false), Ok(vec![2, 3, 0, 1]));
        assert_eq!(draw_by_scores(&[-INF; 3], 2, &[1], 0.0, false), Ok(vec![]));
        assert_eq!(draw_by_scores(&[-INF; 3], 2, &[1], 1.0, true), Ok(vec![]));
        assert_eq!(draw_by_scores(&[], 0, &[1], 0.0, false), Ok(vec![]));
    }

    #[test]
    fn ties_fall_by_the_key_and_zero_has_no_sign() {
        let first = |key| draw_by_scores(&[0.0, -0.0, 0.0], 1, &[key], 0.0, false).unwrap()[0];
        let mut counts = [0; 3];
        (0..300).for_each(|key| counts[first(key) as usize] += 1);
        assert!(counts.iter().all(|&count| (70..130).contains(&count)), "{counts:?}");
    }

    #[test]
    fn an_infinite_score_is_always_drawn_and_a_small_temperature_is_none() {
        for key in 0..20 {
            assert_eq!(draw_by_scores(&[1.0, INF], 1, &[key], 1.0, false), Ok(vec![1]));
            assert_eq!(draw_by_scores(&[1.0, INF], 2, &[key], 1.0, true), Ok(vec![1, 1]));
            assert_eq!(draw_by_scores(&[1.0, 2.0, 0.0], 2, &[key], 1e-300, false).unwrap()[0], 1);
            assert_eq!(draw_by_scores(&[1e308, -1e308], 2, &[key], 1.0, false), Ok(vec![0, 1]));
        }
    }

    #[test]
    fn a_chance_of_1_is_drawn_and_one_of_0_never() {
        for key in 0..50 {
            assert_eq!(draw_each(&[0.0, 1.0, 0.0], 3, &[key]), Ok(vec![1]));
        }
        assert_eq!(draw_each(&[], 1, &[0]), Err(Error::TooFew { asked: 1, available: 0 }));
    }

    #[test]
    fn what_cannot_be_drawn_by_is_refused() {
        let refused = |scores: &[f64], temperature, replacement| {
            draw_by_scores(scores, 1, &[0], temperature, replacement).unwrap_err().to_string()
        };
        assert_eq!(refused(&[0.0, f64::NAN], 0.0, false), "the score of candidate 1 is NaN");
        assert_eq!(refused(&[0.0], -1.0, false), "temperature: got -1, expected a finite number, 0 or more");
        assert!(refused(&[0.0], 0.0, true).contains("a temperature above 0"));
        assert_eq!(refused(&[], 0.0, false), "cannot choose 1 of 0");
    }
}
