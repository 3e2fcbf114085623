//! Groups of values, each measured by its own mean and spread.

use crate::error::{Fault, Result};
use crate::explain::{Comparison, Trace};
use crate::forest::Forest;
use crate::options::Reader;

/// Below this spread of the raw values a group says nothing: its members get exactly 0.
pub const FLAT: f64 = 1e-8;

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

impl Normaliser {
    /// Reads `center`, `scale`, `ddof` and `eps`.
    pub fn read(options: &mut Reader, scale: &str) -> Result<Self> {
        Ok(Self {
            center: options.choice("center", "mean", &[("mean", Center::Mean), ("loo", Center::LeaveOneOut)])?,
            scale: options.choice_or_number(
                "scale",
                scale,
                &[("std", Scale::Std), ("none", Scale::None), ("bernoulli", Scale::Bernoulli)],
                Scale::Constant,
            )?,
            ddof: options.zero_or_one("ddof", 1)?,
            eps: options.non_negative("eps", 1e-6)?,
            singleton_raw: false,
        })
    }

    /// Reads the options of leaf-level estimators: `singleton` too.
    pub fn read_leaf(options: &mut Reader) -> Result<Self> {
        let norm = Self::read(options, "std")?;
        let singleton_raw = options.choice("singleton", "zero", &[("zero", false), ("raw", true)])?;
        Ok(Self { singleton_raw, ..norm })
    }

    /// What turns the values of a group into N(x). Err holds the position of a value that `bernoulli` cannot take.
    pub fn measure(self, values: &[f64]) -> std::result::Result<Measure, usize> {
        if self.scale == Scale::Bernoulli
            && let Some(position) = values.iter().position(|x| !(0.0..=1.0).contains(x))
        {
            return Err(position);
        }
        if values.len() < 2 {
            return Ok(if self.singleton_raw { Measure::RAW } else { Measure::zero(Case::Single) });
        }
        if is_flat(values) {
            return Ok(Measure::zero(Case::Flat));
        }
        let count = values.len() as f64;
        let mean = mean_of(values);
        let scale = match self.scale {
            Scale::None => 1.0,
            Scale::Std => std_of(values, mean, self.ddof) + self.eps,
            Scale::Bernoulli => (mean * (1.0 - mean)).sqrt(),
            Scale::Constant(constant) => constant,
        };
        let factor = match self.center {
            Center::Mean => 1.0,
            Center::LeaveOneOut => count / (count - 1.0),
        };
        Ok(Measure { case: Case::Compared, baseline: mean, factor, scale })
    }
}

/// What became of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Case {
    Compared,
    /// All values are equal: 0.
    Flat,
    /// There is one value: 0, or the value itself.
    Single,
}

impl Case {
    /// The name that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::Flat => "flat",
            Self::Single => "single",
        }
    }
}

/// factor · (x − baseline) / scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measure {
    pub case: Case,
    pub baseline: f64,
    pub factor: f64,
    pub scale: f64,
}

impl Measure {
    const RAW: Self = Self { case: Case::Single, baseline: 0.0, factor: 1.0, scale: 1.0 };

    /// Every value becomes exactly 0.
    pub fn zero(case: Case) -> Self {
        Self { case, baseline: 0.0, factor: 0.0, scale: 1.0 }
    }

    /// Refuses what overflowed: a mean or a spread that is not finite would make every advantage 0.
    pub fn check(&self, forest: &Forest, group: &[u32]) -> Result<()> {
        if self.baseline.is_finite() && self.scale.is_finite() {
            return Ok(());
        }
        Err(forest.fault(group[0] as usize, Fault::NotFinite))
    }

    /// The value as it is measured.
    pub fn of(&self, x: f64) -> f64 {
        if self.factor == 0.0 { 0.0 } else { self.factor * (x - self.baseline) / self.scale }
    }
}

/// Whether values are equal but for rounding.
pub fn is_flat(values: &[f64]) -> bool {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    high - low <= FLAT
}

pub(crate) fn mean_of(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

pub(crate) fn std_of(values: &[f64], mean: f64, ddof: u32) -> f64 {
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (values.len() as f64 - f64::from(ddof))).sqrt()
}

/// Members of each group: `order[start[g]..start[g + 1]]` are the items with key g.
#[derive(Debug, Clone)]
pub struct Groups {
    start: Vec<u32>,
    order: Vec<u32>,
}

impl Groups {
    /// A stable counting sort of `items` by `key(item)`.
    pub fn new(num_keys: usize, items: &[u32], key: impl Fn(u32) -> u32) -> Self {
        let mut start = vec![0u32; num_keys + 1];
        for &item in items {
            start[key(item) as usize + 1] += 1;
        }
        for group in 0..num_keys {
            start[group + 1] += start[group];
        }
        let mut next = start.clone();
        let mut order = vec![0; items.len()];
        for &item in items {
            let place = &mut next[key(item) as usize];
            order[*place as usize] = item;
            *place += 1;
        }
        Self { start, order }
    }

    /// The members of each group that has any.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let filled = self.start.windows(2).filter(|pair| pair[0] < pair[1]);
        filled.map(|pair| &self.order[pair[0] as usize..pair[1] as usize])
    }
}

/// Normalises `x` (one entry a node) within each group of nodes, in place.
pub fn normalise_groups(
    forest: &Forest,
    groups: &Groups,
    norm: Normaliser,
    x: &mut [f64],
    trace: &mut Trace,
    term: Comparison,
) -> Result<()> {
    let mut members = Vec::new();
    for group in groups.iter() {
        members.clear();
        members.extend(group.iter().map(|&node| x[node as usize]));
        let measure = norm.measure(&members).map_err(|position| {
            let node = group[position] as usize;
            forest.fault(node, Fault::NotAProbability(x[node]))
        })?;
        measure.check(forest, group)?;
        for (&node, &member) in group.iter().zip(&members) {
            x[node as usize] = measure.of(member);
        }
        trace.note(term, group, &members, norm.ddof, measure);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STD: Normaliser =
        Normaliser { center: Center::Mean, scale: Scale::Std, ddof: 1, eps: 0.0, singleton_raw: false };

    fn normalised(values: &[f64], norm: Normaliser) -> std::result::Result<Vec<f64>, usize> {
        let measure = norm.measure(values)?;
        Ok(values.iter().map(|&x| measure.of(x)).collect())
    }

    #[test]
    fn a_group_of_one_is_zero_or_raw() {
        assert_eq!(normalised(&[], STD), Ok(vec![]));
        assert_eq!(normalised(&[0.7], STD), Ok(vec![0.0]));
        assert_eq!(normalised(&[0.7], Normaliser { singleton_raw: true, ..STD }), Ok(vec![0.7]));
    }

    #[test]
    fn a_spread_that_is_rounding_is_exactly_zero() {
        assert_eq!(normalised(&[0.1 + 0.2, 0.3], STD), Ok(vec![0.0, 0.0]));
        assert_eq!(normalised(&[1.0, 1.0 + FLAT / 2.0, 1.0], STD), Ok(vec![0.0; 3]));
    }

    #[test]
    fn leave_one_out_and_constants_multiply() {
        let plain = Normaliser { scale: Scale::None, ..STD };
        let loo = Normaliser { center: Center::LeaveOneOut, ..plain };
        assert_eq!(normalised(&[0.0, 0.0, 3.0], loo), Ok(vec![-1.5, -1.5, 3.0]));
        let constant = Normaliser { scale: Scale::Constant(4.0), ..plain };
        assert_eq!(normalised(&[0.0, 2.0], constant), Ok(vec![-0.25, 0.25]));
    }

    #[test]
    fn bernoulli_takes_probabilities_only() {
        let norm = Normaliser { scale: Scale::Bernoulli, ..STD };
        assert_eq!(normalised(&[0.0, 1.0], norm), Ok(vec![-1.0, 1.0]));
        assert_eq!(normalised(&[0.0, 1.5], norm), Err(1));
        assert_eq!(normalised(&[-0.1], norm), Err(0));
    }
}
