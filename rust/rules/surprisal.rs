//! `surprisal`: where the next turn was least expected.

use super::turns::{Undecided, below, surprisal_of};
use super::{Choice, Drawing, Rule};

/// S(c) of a turn c is the mean −log-probability of its sampled tokens: `entropy` by what was drawn, without its cost.
pub static SURPRISAL: Rule = Rule {
    name: "surprisal",
    summary: "where the next turn's tokens were least likely",
    formula: "S(n) - alpha * (children - 1), S(n) = mean over the children of their mean -log-probability",
    needs: &["logprobs"],
    reads_prompt: false,
    read: |options| {
        let undecided = Undecided::read(options)?;
        let drawing = Drawing::Best { temperature: undecided.temperature };
        let scores = move |asked: &super::Asked| {
            asked.check_logprobs("surprisal")?;
            let surprisal = |node| surprisal_of(asked.forest, node, undecided.first_tokens);
            let what = "the log-probabilities of the turns below";
            below(asked.forest, asked.candidates, "surprisal", what, surprisal).map(|below| undecided.scores(&below))
        };
        Ok(Choice { scores: Box::new(scores), drawing })
    },
};
