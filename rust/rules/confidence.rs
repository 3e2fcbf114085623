//! `confidence`: where the next turn was least sure of itself at its worst.

use super::turns::below;
use super::{Asked, Choice, Drawing, Rule};
use crate::sampled::logprobs_of;

/// Source: DeepConf (arXiv 2508.15260), its lowest group confidence, with the log-probabilities of what was sampled.
///
/// `stop_below` is for whoever samples: a branch whose windowed mean falls below it is closed while it grows.
pub static CONFIDENCE: Rule = Rule {
    name: "confidence",
    summary: "where the next turn was least sure of itself at its worst; may close branches while they grow",
    formula: "-C(n), C(n) = mean over the children of their lowest mean log-probability in `window` sampled tokens",
    needs: &["logprobs"],
    reads_prompt: false,
    read: |options| {
        let window = options.whole("window", 32, 1)? as usize;
        options.none_or_number("stop_below", "a finite number below 0, nats", |x| x < 0.0)?;
        let scores = move |asked: &Asked| {
            let forest = asked.forest;
            let mut sums = vec![];
            let of_turn = |node| {
                let lowest = if forest.knows_logprobs {
                    lowest_mean(logprobs_of(forest, node), window, &mut sums)
                } else {
                    None
                };
                // a file may hold a turn's confidence without its tokens
                lowest.or(Some(forest.confidence[node])).filter(|known| known.is_finite())
            };
            let what = "the log-probabilities of the turns below";
            let below = below(forest, asked.candidates, "confidence", what, of_turn)?;
            Ok(below.mean.into_iter().map(|mean| -mean).collect())
        };
        Ok(Choice { scores: Box::new(scores), drawing: Drawing::Best { temperature: 0.0 } })
    },
};

/// The lowest mean over `window` values in a row, or over all where there are fewer; `sums` is room to work in.
fn lowest_mean(values: impl Iterator<Item = f32>, window: usize, sums: &mut Vec<f64>) -> Option<f64> {
    let mut total = 0.0;
    sums.clear();
    sums.push(total);
    sums.extend(values.map(|value| {
        total += f64::from(value);
        total
    }));
    let window = window.min(sums.len() - 1);
    if window == 0 {
        return None;
    }
    let means = sums[window..].iter().zip(sums.iter()).map(|(after, before)| (after - before) / window as f64);
    means.reduce(f64::min)
}

#[cfg(test)]
mod tests {
    use super::lowest_mean;

    #[test]
    fn a_window_finds_the_worst_part_of_a_turn() {
        let lowest = |values: &[f32], window| lowest_mean(values.iter().copied(), window, &mut vec![]);
        let values = [0.0, -1.0, -3.0, -0.5];
        assert_eq!(lowest(&values, 1), Some(-3.0));
        assert_eq!(lowest(&values, 2), Some(-2.0));
        assert_eq!(lowest(&values, 32), Some(-1.125));
        assert_eq!(lowest(&[], 3), None);
    }
}
