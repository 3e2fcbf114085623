//! Every rule that says which nodes to expand, one item a file: name, formula, what it needs, options and function.
//!
//! A new one is a file with a [`Rule`] and its line in [`RULES`]; nothing else knows rules by name.

mod bernoulli;
mod confidence;
mod contrast;
mod entropy;
mod puct;
mod surprisal;
mod turns;
mod uct;
mod uniform;

use crate::draws::{draw_by_scores, draw_each};
use crate::error::{Error, Result};
use crate::forest::{Forest, NO_PARENT, row_id};
use crate::options::{self, Described, OptionValue, Options, Reader};
use crate::select::select_uniform;
use crate::value::{LeafSums, leaf_sums};

/// All rules, in the order of the documentation.
pub static RULES: [&Rule; 8] = [
    &uniform::UNIFORM,
    &entropy::ENTROPY,
    &surprisal::SURPRISAL,
    &bernoulli::BERNOULLI,
    &uct::UCT,
    &puct::PUCT,
    &contrast::CONTRAST,
    &confidence::CONFIDENCE,
];

/// How the nodes to expand are chosen.
#[derive(Debug)]
pub struct Rule {
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// One plain line: the chance or the score of a candidate n.
    pub formula: &'static str,
    /// Columns that it reads beside the shape of the trees: `rewards`, `entropies`, `logprobs`.
    pub needs: &'static [&'static str],
    /// Whether it reads all trees of a candidate's prompt, or the candidate's own alone.
    pub reads_prompt: bool,
    /// Reads its options and returns what they make.
    pub read: fn(&mut Reader) -> Result<Choice>,
}

/// A rule with its options: a score a candidate, and how draws follow from the scores.
pub struct Choice {
    pub scores: Scoring,
    pub drawing: Drawing,
}

/// What is asked -> a score a candidate, finite.
pub type Scoring = Box<dyn Fn(&Asked) -> Result<Vec<f64>>>;

/// How draws follow from scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Drawing {
    /// All have the same chance; no score is computed.
    Alike { replacement: bool },
    /// The highest scores, none twice; see [`draw_by_scores`].
    Best { temperature: f64 },
    /// With replacement, in proportion to the scores; alike where all are 0.
    InProportion,
    /// Each by itself with its score as its chance.
    Each,
}

/// What is known beside the forest.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// The mean reward of the run so far, scaled to [0, 1].
    pub prior: f64,
    /// What is scaled to 0 and to 1; without it 0 and 1 themselves, or the prompt's own rewards where they go beyond.
    pub reward_range: Option<(f64, f64)>,
    /// Whether the closed leaves were asked for their rewards: those without one failed, and a forest without any will do.
    pub rewards_asked: bool,
}

impl Default for Context {
    fn default() -> Self {
        Self { prior: 0.5, reward_range: None, rewards_asked: false }
    }
}

/// Candidates of a forest, each named once.
pub struct Asked<'a> {
    pub forest: &'a Forest,
    pub candidates: &'a [u32],
    pub context: Context,
}

impl<'a> Asked<'a> {
    fn new(forest: &'a Forest, candidates: &'a [u32], context: Context) -> Result<Self> {
        context.check()?;
        let mut named = vec![false; forest.num_nodes()];
        for &node in candidates {
            forest.check_node(node)?;
            if std::mem::replace(&mut named[node as usize], true) {
                return Err(Error::CandidateRepeats { node });
            }
        }
        Ok(Self { forest, candidates, context })
    }

    /// Rewards summed up the trees. Refused where no leaf has one, though nobody asked.
    fn leaf_sums(&self, rule: &'static str) -> Result<LeafSums> {
        let none = !self.candidates.is_empty() && self.forest.reward.iter().all(|reward| reward.is_nan());
        if none && !self.context.rewards_asked {
            return Err(Error::RuleNeeds { rule, what: "rewards" });
        }
        Ok(leaf_sums(&self.forest.parent, &self.forest.reward))
    }

    fn check_logprobs(&self, rule: &'static str) -> Result<()> {
        let known = self.forest.knows_logprobs || self.candidates.is_empty();
        if known { Ok(()) } else { Err(Error::RuleNeeds { rule, what: "log-probabilities" }) }
    }

    fn each(&self, score: impl FnMut(u32) -> f64) -> Vec<f64> {
        self.candidates.iter().copied().map(score).collect()
    }
}

impl Context {
    fn check(self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.prior) {
            let got = self.prior.to_string();
            return Err(Error::Given { name: "prior", got, expected: "a number from 0 to 1" });
        }
        match self.reward_range {
            Some((low, high)) if !(low.is_finite() && high.is_finite() && low < high) => {
                let got = format!("({low}, {high})");
                Err(Error::Given { name: "reward_range", got, expected: "two finite numbers, the lower one first" })
            }
            _ => Ok(()),
        }
    }
}

/// Mean reward below each node. A node below which nothing is scored takes its parent's, a root 0.
fn inherited_values(forest: &Forest, sums: &LeafSums) -> Vec<f64> {
    let mut value = Vec::with_capacity(forest.num_nodes());
    for (node, &parent) in forest.parent.iter().enumerate() {
        value.push(match sums.num_leaves[node] {
            0 if parent == NO_PARENT => 0.0,
            0 => value[parent as usize],
            count => sums.sum[node] / f64::from(count),
        });
    }
    value
}

impl Rule {
    /// The rule of this name.
    pub fn named(name: &str) -> Result<&'static Self> {
        options::find("selection rule", &RULES, name, |rule| rule.name)
    }

    /// All its options with their defaults and limits.
    pub fn options(&self) -> Result<Vec<Described>> {
        options::describe(self.read)
    }

    /// Checks options; returns all of them, as they are or by default.
    pub fn resolve(&self, given: &[(String, OptionValue)]) -> Result<Options> {
        options::resolve(self.name, given, self.read).map(|(_, options)| options)
    }

    fn choice(&self, given: &[(String, OptionValue)]) -> Result<Choice> {
        options::resolve(self.name, given, self.read).map(|(choice, _)| choice)
    }
}

/// Draws up to `n` of the candidates (node ids) by the rule of this name; the draws are pure in `key`.
pub fn select(
    forest: &Forest,
    rule: &str,
    given: &[(String, OptionValue)],
    candidates: &[u32],
    n: u32,
    key: &[i64],
    context: Context,
) -> Result<Vec<u32>> {
    let choice = Rule::named(rule)?.choice(given)?;
    let places = choice.draw(forest, candidates, n, key, context)?;
    Ok(places.into_iter().map(|place| candidates[place as usize]).collect())
}

/// The score or the chance of each candidate by the rule of this name; under `uniform` all are 1.
pub fn selection_scores(
    forest: &Forest,
    rule: &str,
    given: &[(String, OptionValue)],
    candidates: &[u32],
    context: Context,
) -> Result<Vec<f64>> {
    let choice = Rule::named(rule)?.choice(given)?;
    (choice.scores)(&Asked::new(forest, candidates, context)?)
}

impl Choice {
    fn draw(&self, forest: &Forest, candidates: &[u32], n: u32, key: &[i64], context: Context) -> Result<Vec<u32>> {
        if let Drawing::Alike { replacement } = self.drawing {
            candidates.iter().try_for_each(|&node| forest.check_node(node))?;
            return select_uniform(row_id(candidates.len(), "candidates")?, n, replacement, key);
        }
        let scores = (self.scores)(&Asked::new(forest, candidates, context)?)?;
        match self.drawing {
            Drawing::Best { temperature } => draw_by_scores(&scores, n, key, temperature, false),
            Drawing::Each => draw_each(&scores, n, key),
            Drawing::InProportion | Drawing::Alike { .. } => {
                let all_zero = scores.iter().all(|&score| score == 0.0);
                let log = |&score: &f64| if all_zero { 0.0 } else { score.ln() };
                draw_by_scores(&scores.iter().map(log).collect::<Vec<_>>(), n, key, 1.0, true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::tests::published;

    #[test]
    fn every_rule_resolves_to_its_defaults_and_takes_no_candidates() {
        for rule in RULES {
            let resolved = rule.resolve(&[]).unwrap();
            assert_eq!(rule.resolve(&resolved).unwrap(), resolved);
            let always = rule.options().unwrap().into_iter().filter(|option| option.beside.is_none());
            let defaults: Vec<_> = always.map(|option| (option.name.to_owned(), option.default)).collect();
            assert_eq!(defaults, resolved);
            let none = select(&Forest::new(), rule.name, &[], &[], 0, &[], Context::default());
            assert_eq!(none, Ok(vec![]), "{}", rule.name);
        }
    }

    #[test]
    fn names_differ_and_a_wrong_one_is_shown_the_nearest() {
        let names: std::collections::HashSet<_> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len());
        let message = Rule::named("uniforn").err().unwrap().to_string();
        assert!(message.contains("did you mean 'uniform'?"), "{message}");
    }

    #[test]
    fn uniform_draws_node_ids_among_its_candidates() {
        let forest = published(false);
        let draw = |given: &[(String, OptionValue)], candidates: &[u32]| {
            select(&forest, "uniform", given, candidates, 9, &[1], Context::default())
        };
        let places = select_uniform(3, 9, true, &[1]).unwrap();
        let expected = places.iter().map(|&place| [0, 2, 6][place as usize]).collect::<Vec<_>>();
        assert_eq!(draw(&[], &[0, 2, 6]), Ok(expected));
        let once = [("replacement".to_owned(), OptionValue::Flag(false))];
        assert_eq!(draw(&once, &[0, 2, 6]).unwrap().len(), 3);
        assert!(matches!(draw(&[], &[99]), Err(Error::NoNode { .. })));
    }

    #[test]
    fn uct_weighs_values_against_visits() {
        // V and k: root 0.5 of 6, A 0.5 of 2, B 2/3 of 3 as its only child B1
        let scores = selection_scores(&published(false), "uct", &[], &[0, 1, 2, 6], Context::default()).unwrap();
        let bonus = |above: f64, own: f64| (above.ln() / own).sqrt();
        let expected =
            [0.5 + bonus(12.0, 6.0), 0.5 + bonus(6.0, 2.0), 2.0 / 3.0 + bonus(6.0, 3.0), 2.0 / 3.0 + bonus(3.0, 3.0)];
        assert!(scores.iter().zip(expected).all(|(score, expected)| (score - expected).abs() < 1e-12), "{scores:?}");
    }

    #[test]
    fn what_a_rule_lacks_is_named() {
        let forest = published(false);
        let refused = |rule| selection_scores(&forest, rule, &[], &[0, 2], Context::default()).unwrap_err().to_string();
        assert_eq!(
            refused("entropy"),
            "tree 0, node 0: selection rule entropy needs the entropies of the turns below, and this node has none"
        );
        for rule in ["surprisal", "puct", "contrast"] {
            let message = format!("selection rule {rule} needs log-probabilities, and the forest has none");
            assert_eq!(refused(rule), message);
        }
        let twice = selection_scores(&forest, "uct", &[], &[2, 0, 2], Context::default());
        assert_eq!(twice, Err(Error::CandidateRepeats { node: 2 }));
    }
}
