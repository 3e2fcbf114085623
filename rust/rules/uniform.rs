//! `uniform`: every candidate alike.

use super::{Choice, Drawing, Rule};

/// Source: Tree-GRPO (arXiv 2509.21240), section 3.2.
pub static UNIFORM: Rule = Rule {
    name: "uniform",
    summary: "every candidate alike, with replacement: the paper's",
    formula: "P(n) = 1 / number of candidates",
    needs: &[],
    reads_prompt: false,
    read: |options| {
        let replacement = options.flag("replacement", true)?;
        Ok(Choice { scores: Box::new(|asked| Ok(asked.each(|_| 1.0))), drawing: Drawing::Alike { replacement } })
    },
};
