//! Estimators by name, with their options: what a user may ask for, its defaults and its limits.

use strsim::jaro_winkler;

use crate::error::{Error, Result};
use crate::value::ValueRule;

/// An option's value as it crosses the border; text that reads as a number or a flag is taken as one.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    Text(String),
    Number(f64),
    Integer(i64),
    Flag(bool),
}

/// What a group's values are measured from: their mean, or for each the mean of the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Center {
    Mean,
    LeaveOneOut,
}

/// What a group's centred values are divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    None,
    Std,
    Bernoulli,
    Constant(f64),
}

/// N(x) of a group: centre, then scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normaliser {
    pub center: Center,
    pub scale: Scale,
    pub ddof: u32,
    pub eps: f64,
    /// A group of one keeps its raw value, as the paper's code does, instead of 0.
    pub singleton_raw: bool,
}

/// Which terms `tree-grpo` has: both, that of the tree, or the tree's of the normalised group's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Variant {
    Sum,
    IntraOnly,
    TwoNorm,
}

/// How rewards become advantages, all options resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    Grpo { norm: Normaliser },
    TreeGrpo { norm: Normaliser, variant: Variant, inter: f64, intra: f64 },
    Parent { shared_roots: bool, value: ValueRule, norm: Normaliser },
    Sibling { shared_roots: bool, value: ValueRule, norm: Normaliser },
}

/// Names that are at least so similar are taken for a slip of the hand.
const NEAR: f64 = 0.75;

/// The estimators' names.
pub const ESTIMATORS: [&str; 4] = ["grpo", "tree-grpo", "parent", "sibling"];

const LEAF: [(&str, &str); 5] =
    [("center", "mean"), ("scale", "std"), ("ddof", "1"), ("eps", "1e-6"), ("singleton", "zero")];
const TREE: [(&str, &str); 8] = [
    ("center", "mean"),
    ("scale", "std"),
    ("ddof", "1"),
    ("eps", "1e-6"),
    ("singleton", "zero"),
    ("variant", "sum"),
    ("inter", "1"),
    ("intra", "1"),
];
const PARENT: [(&str, &str); 7] = [
    ("roots", "shared"),
    ("value", "leaf-mean"),
    ("kappa", "1"),
    ("tau", "1"),
    ("scale", "none"),
    ("ddof", "0"),
    ("eps", "1e-6"),
];
const SIBLING: [(&str, &str); 8] = [
    ("roots", "shared"),
    ("value", "leaf-mean"),
    ("kappa", "1"),
    ("tau", "1"),
    ("center", "mean"),
    ("scale", "none"),
    ("ddof", "1"),
    ("eps", "1e-6"),
];

/// An estimator's options with their defaults as text, in the order of the documentation.
pub fn defaults(estimator: &str) -> Result<(&'static str, &'static [(&'static str, &'static str)])> {
    match estimator {
        "grpo" => Ok(("grpo", &LEAF)),
        "tree-grpo" => Ok(("tree-grpo", &TREE)),
        "parent" => Ok(("parent", &PARENT)),
        "sibling" => Ok(("sibling", &SIBLING)),
        _ => Err(Error::UnknownEstimator { name: estimator.to_owned(), hint: hint(estimator, &ESTIMATORS, "valid:") }),
    }
}

/// Checks an estimator's options; returns it with every option resolved, and those as name and value.
///
/// `kappa` counts only beside `value = smoothed` and `tau` beside `child-softmax`; elsewhere they are refused
/// when given and absent from the resolved ones.
pub fn resolve(estimator: &str, given: &[(String, OptionValue)]) -> Result<(Estimator, Vec<(String, OptionValue)>)> {
    let (name, table) = defaults(estimator)?;
    let value_rule = text_of(given, table, "value");
    let listed = |option: &str| match option {
        "kappa" => value_rule.as_deref() == Some("smoothed"),
        "tau" => value_rule.as_deref() == Some("child-softmax"),
        _ => true,
    };
    let table: Vec<_> = table.iter().copied().filter(|(option, _)| listed(option)).collect();
    for (option, _) in given {
        if !table.iter().any(|(known, _)| known == option) {
            let known: Vec<_> = table.iter().map(|(known, _)| *known).collect();
            return Err(Error::UnknownOption {
                estimator: name,
                name: option.clone(),
                hint: hint(option, &known, "it has"),
            });
        }
    }
    let mut reader = Reader { given, table: &table, resolved: vec![] };
    let resolved = match name {
        "grpo" => Estimator::Grpo { norm: reader.leaf_normaliser()? },
        "tree-grpo" => Estimator::TreeGrpo {
            norm: reader.leaf_normaliser()?,
            variant: reader.choice(
                "variant",
                &[("sum", Variant::Sum), ("intra_only", Variant::IntraOnly), ("two_norm", Variant::TwoNorm)],
            )?,
            inter: reader.number("inter", "a finite number, 0 or more", |x| x >= 0.0)?,
            intra: reader.number("intra", "a finite number, 0 or more", |x| x >= 0.0)?,
        },
        "parent" => Estimator::Parent {
            shared_roots: reader.shared_roots()?,
            value: reader.value_rule()?,
            norm: Normaliser {
                center: Center::Mean,
                scale: reader.choice("scale", &[("none", Scale::None), ("std", Scale::Std)])?,
                ddof: reader.ddof()?,
                eps: reader.eps()?,
                singleton_raw: false,
            },
        },
        _ => Estimator::Sibling {
            shared_roots: reader.shared_roots()?,
            value: reader.value_rule()?,
            norm: Normaliser {
                center: reader.center()?,
                scale: reader.scale()?,
                ddof: reader.ddof()?,
                eps: reader.eps()?,
                singleton_raw: false,
            },
        },
    };
    Ok((resolved, reader.resolved))
}

/// The nearest valid name, where one is near, and all that there are.
fn hint(name: &str, valid: &[&str], all: &str) -> String {
    let nearest = valid.iter().max_by(|a, b| jaro_winkler(name, a).total_cmp(&jaro_winkler(name, b)));
    let near = nearest.filter(|nearest| jaro_winkler(name, nearest) > NEAR);
    let asked = near.map_or_else(String::new, |nearest| format!("did you mean '{nearest}'? "));
    format!("{asked}{all} {}", valid.join(", "))
}

fn text_of(given: &[(String, OptionValue)], table: &[(&str, &str)], option: &str) -> Option<String> {
    match given.iter().find(|(name, _)| name == option) {
        Some((_, OptionValue::Text(text))) => Some(text.clone()),
        Some(_) => None,
        None => table.iter().find(|(name, _)| *name == option).map(|(_, text)| (*text).to_owned()),
    }
}

/// Reads options one by one and notes each as it was resolved.
struct Reader<'a> {
    given: &'a [(String, OptionValue)],
    table: &'a [(&'static str, &'static str)],
    resolved: Vec<(String, OptionValue)>,
}

impl Reader<'_> {
    fn raw(&self, option: &str) -> OptionValue {
        let given = self.given.iter().rev().find(|(name, _)| name == option).map(|(_, value)| value.clone());
        given.unwrap_or_else(|| {
            let default = self.table.iter().find(|(name, _)| *name == option).map_or("", |(_, text)| *text);
            OptionValue::Text(default.to_owned())
        })
    }

    fn refuse<T>(option: &str, got: &OptionValue, expected: &str) -> Result<T> {
        let got = match got {
            OptionValue::Text(text) => format!("'{text}'"),
            OptionValue::Number(number) => number.to_string(),
            OptionValue::Integer(integer) => integer.to_string(),
            OptionValue::Flag(flag) => flag.to_string(),
        };
        Err(Error::OptionValue { name: option.to_owned(), got, expected: expected.to_owned() })
    }

    fn number(&mut self, option: &str, expected: &str, legal: impl Fn(f64) -> bool) -> Result<f64> {
        let raw = self.raw(option);
        match as_number(&raw) {
            Some(number) if number.is_finite() && legal(number) => {
                self.resolved.push((option.to_owned(), OptionValue::Number(number)));
                Ok(number)
            }
            _ => Self::refuse(option, &raw, expected),
        }
    }

    fn choice<T: Copy>(&mut self, option: &str, choices: &[(&str, T)]) -> Result<T> {
        let raw = self.raw(option);
        let chosen = choices.iter().find(|(name, _)| raw == OptionValue::Text((*name).to_owned()));
        let Some((_, choice)) = chosen else {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            return Self::refuse(option, &raw, &names.join(", "));
        };
        self.resolved.push((option.to_owned(), raw));
        Ok(*choice)
    }

    fn leaf_normaliser(&mut self) -> Result<Normaliser> {
        Ok(Normaliser {
            center: self.center()?,
            scale: self.scale()?,
            ddof: self.ddof()?,
            eps: self.eps()?,
            singleton_raw: self.choice("singleton", &[("zero", false), ("raw", true)])?,
        })
    }

    fn center(&mut self) -> Result<Center> {
        self.choice("center", &[("mean", Center::Mean), ("loo", Center::LeaveOneOut)])
    }

    fn scale(&mut self) -> Result<Scale> {
        let raw = self.raw("scale");
        if as_number(&raw).is_some() {
            let legal = "std, none, bernoulli or a positive number";
            return self.number("scale", legal, |x| x > 0.0).map(Scale::Constant);
        }
        self.choice("scale", &[("std", Scale::Std), ("none", Scale::None), ("bernoulli", Scale::Bernoulli)])
    }

    fn ddof(&mut self) -> Result<u32> {
        let ddof = self.number("ddof", "0 or 1", |x| x == 0.0 || x == 1.0)? as u32;
        if let Some((_, value)) = self.resolved.last_mut() {
            *value = OptionValue::Integer(i64::from(ddof));
        }
        Ok(ddof)
    }

    fn eps(&mut self) -> Result<f64> {
        self.number("eps", "a finite number, 0 or more", |x| x >= 0.0)
    }

    fn shared_roots(&mut self) -> Result<bool> {
        self.choice("roots", &[("shared", true), ("tree", false)])
    }

    fn value_rule(&mut self) -> Result<ValueRule> {
        let rule = self.choice(
            "value",
            &[
                ("leaf-mean", ValueRule::LeafMean),
                ("child-mean", ValueRule::ChildMean),
                ("max", ValueRule::Max),
                ("smoothed", ValueRule::Smoothed { kappa: 1.0 }),
                ("child-softmax", ValueRule::ChildSoftmax { tau: 1.0 }),
            ],
        )?;
        Ok(match rule {
            ValueRule::Smoothed { .. } => {
                ValueRule::Smoothed { kappa: self.number("kappa", "a finite number, 0 or more", |x| x >= 0.0)? }
            }
            ValueRule::ChildSoftmax { .. } => {
                ValueRule::ChildSoftmax { tau: self.number("tau", "a positive number", |x| x > 0.0)? }
            }
            other => other,
        })
    }
}

fn as_number(value: &OptionValue) -> Option<f64> {
    match value {
        OptionValue::Number(number) => Some(*number),
        OptionValue::Integer(integer) => Some(*integer as f64),
        OptionValue::Text(text) => text.trim().parse().ok(),
        OptionValue::Flag(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str, value: OptionValue) -> Vec<(String, OptionValue)> {
        vec![(name.to_owned(), value)]
    }

    #[test]
    fn every_estimator_resolves_to_its_defaults() {
        for name in ESTIMATORS {
            let (_, resolved) = resolve(name, &[]).unwrap();
            assert_eq!(resolve(name, &resolved).unwrap().1, resolved);
        }
        let norm = Normaliser { center: Center::Mean, scale: Scale::Std, ddof: 1, eps: 1e-6, singleton_raw: false };
        assert_eq!(resolve("grpo", &[]).unwrap().0, Estimator::Grpo { norm });
    }

    #[test]
    fn a_slip_of_the_hand_is_shown_the_nearest_name() {
        let message = resolve("tre-grpo", &[]).unwrap_err().to_string();
        assert!(message.contains("did you mean 'tree-grpo'?"), "{message}");
        let message = resolve("grpo", &given("epz", OptionValue::Integer(1))).unwrap_err().to_string();
        assert!(message.contains("did you mean 'eps'?"), "{message}");
    }

    #[test]
    fn a_value_out_of_range_is_refused() {
        for eps in [f64::NAN, -1.0, f64::INFINITY] {
            let refused = resolve("grpo", &given("eps", OptionValue::Number(eps)));
            assert!(matches!(refused, Err(Error::OptionValue { .. })));
        }
        assert!(resolve("grpo", &given("ddof", OptionValue::Integer(2))).is_err());
        assert!(resolve("grpo", &given("scale", OptionValue::Flag(true))).is_err());
    }

    #[test]
    fn kappa_counts_beside_smoothed_only() {
        let mut options = given("kappa", OptionValue::Integer(3));
        assert!(matches!(resolve("parent", &options), Err(Error::UnknownOption { .. })));
        options.extend(given("value", OptionValue::Text("smoothed".to_owned())));
        let (estimator, _) = resolve("parent", &options).unwrap();
        assert!(matches!(estimator, Estimator::Parent { value: ValueRule::Smoothed { kappa: 3.0 }, .. }));
    }
}
