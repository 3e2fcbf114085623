//! `entropy`: where the next turn was least decided.

use super::turns::{Undecided, below, entropy_of};
use super::{Choice, Drawing, Rule};

/// H(c) of a turn c is the mean entropy of the distributions that its tokens were sampled from.
pub static ENTROPY: Rule = Rule {
    name: "entropy",
    summary: "where the distributions of the next turn are widest",
    formula: "H(n) - alpha * (children - 1), H(n) = mean over the children of their mean entropy",
    needs: &["entropies"],
    reads_prompt: false,
    read: |options| {
        let undecided = Undecided::read(options)?;
        let drawing = Drawing::Best { temperature: undecided.temperature };
        let scores = move |asked: &super::Asked| {
            let entropy = |node| entropy_of(asked.forest, node, undecided.first_tokens);
            let what = "the entropies of the turns below";
            below(asked.forest, asked.candidates, "entropy", what, entropy).map(|below| undecided.scores(&below))
        };
        Ok(Choice { scores: Box::new(scores), drawing })
    },
};
