//! Options as given -> typed values: one reading says what there is, its default, its limits, and checks it.

use strsim::jaro_winkler;

use crate::error::{Error, Result};

/// An option's value as it crosses the border; text that reads as a number is taken as one.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    Text(String),
    Number(f64),
    Integer(i64),
    Flag(bool),
}

/// Names and values.
pub type Options = Vec<(String, OptionValue)>;

/// What there is to know of an option without giving it.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    pub name: &'static str,
    pub default: OptionValue,
    /// What it may be, in words.
    pub legal: String,
    /// Beside which other option's value it counts; elsewhere it is refused.
    pub beside: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// A value out of its limits is an error.
    Strict,
    /// Which options are there beside those given: wrong values count as the default.
    Listing,
    /// All options, those that count only beside others too.
    Describing,
}

/// Reads options one by one and notes each as it was resolved.
///
/// Whoever takes options is a function that reads them: it names each with its default and its limits as it needs it,
/// and nothing else lists them.
pub struct Reader<'a> {
    given: &'a [(String, OptionValue)],
    mode: Mode,
    resolved: Options,
    described: Vec<Described>,
    beside: Option<&'static str>,
}

/// Reads options by `read`; returns what it makes of them, and all of them as name and value.
///
/// An option that `of` does not have, or not beside the others that are given, is refused.
pub fn resolve<T>(
    of: &'static str,
    given: &[(String, OptionValue)],
    read: impl Fn(&mut Reader) -> Result<T>,
) -> Result<(T, Options)> {
    let mut listing = Reader::new(given, Mode::Listing);
    read(&mut listing)?;
    let known: Vec<_> = listing.described.iter().map(|option| option.name).collect();
    if let Some((name, _)) = given.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Err(Error::UnknownOption { of, name: name.clone(), hint: hint(name, &known, "it has") });
    }
    let mut reader = Reader::new(given, Mode::Strict);
    let made = read(&mut reader)?;
    Ok((made, reader.resolved))
}

/// All options that `read` may ask for, in the order of the documentation.
pub fn describe<T>(read: impl Fn(&mut Reader) -> Result<T>) -> Result<Vec<Described>> {
    let mut reader = Reader::new(&[], Mode::Describing);
    read(&mut reader)?;
    Ok(reader.described)
}

/// Finds what is called `name` among items that have names.
pub fn find<T>(what: &'static str, items: &[T], name: &str, name_of: impl Fn(&T) -> &'static str) -> Result<T>
where
    T: Copy,
{
    items.iter().copied().find(|item| name_of(item) == name).ok_or_else(|| {
        let names: Vec<_> = items.iter().map(&name_of).collect();
        Error::Unknown { what, name: name.to_owned(), hint: hint(name, &names, "valid:") }
    })
}

/// Names that are at least so similar are taken for a slip of the hand.
const NEAR: f64 = 0.75;

/// The nearest valid name, where one is near, and all that there are.
fn hint(name: &str, valid: &[&str], all: &str) -> String {
    let nearest = valid.iter().max_by(|a, b| jaro_winkler(name, a).total_cmp(&jaro_winkler(name, b)));
    let near = nearest.filter(|nearest| jaro_winkler(name, nearest) > NEAR);
    let asked = near.map_or_else(String::new, |nearest| format!("did you mean '{nearest}'? "));
    format!("{asked}{all} {}", valid.join(", "))
}

impl<'a> Reader<'a> {
    fn new(given: &'a [(String, OptionValue)], mode: Mode) -> Self {
        Self { given, mode, resolved: vec![], described: vec![], beside: None }
    }

    /// A number within the limits that `legal` names and `is_legal` checks; all are finite.
    pub fn number(
        &mut self,
        name: &'static str,
        default: f64,
        legal: &str,
        is_legal: impl Fn(f64) -> bool,
    ) -> Result<f64> {
        let read = |raw: &OptionValue| as_number(raw).filter(|&number| number.is_finite() && is_legal(number));
        self.take(name, OptionValue::Number(default), legal, |raw| read(raw).map(|n| (n, OptionValue::Number(n))))
    }

    /// A finite number, 0 or more.
    pub fn non_negative(&mut self, name: &'static str, default: f64) -> Result<f64> {
        self.number(name, default, "a finite number, 0 or more", |x| x >= 0.0)
    }

    /// 0 or 1.
    pub fn zero_or_one(&mut self, name: &'static str, default: u32) -> Result<u32> {
        let whole = |number: f64| if number == 0.0 { Some(0) } else { (number == 1.0).then_some(1) };
        self.take(name, OptionValue::Integer(default.into()), "0 or 1", |raw| {
            let number = as_number(raw).and_then(whole)?;
            Some((number, OptionValue::Integer(number.into())))
        })
    }

    /// A whole number, `least` or more.
    pub fn whole(&mut self, name: &'static str, default: u32, least: u32) -> Result<u32> {
        let legal = format!("a whole number, {least} or more");
        let read = |number: f64| (number.fract() == 0.0 && number <= f64::from(u32::MAX)).then_some(number as u32);
        self.take(name, OptionValue::Integer(default.into()), &legal, |raw| {
            let number = as_number(raw).filter(|&number| number >= least.into()).and_then(read)?;
            Some((number, OptionValue::Integer(number.into())))
        })
    }

    /// `none`, which is the default, or a number within the limits that `legal` names and `is_legal` checks.
    pub fn none_or_number(
        &mut self,
        name: &'static str,
        legal: &str,
        is_legal: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>> {
        let none = || OptionValue::Text("none".to_owned());
        let legal = format!("none or {legal}");
        self.take(name, none(), &legal, |raw| match as_number(raw) {
            Some(x) => (x.is_finite() && is_legal(x)).then_some((Some(x), OptionValue::Number(x))),
            None => (*raw == none()).then(|| (None, none())),
        })
    }

    /// Yes or no; the words count too.
    pub fn flag(&mut self, name: &'static str, default: bool) -> Result<bool> {
        self.take(name, OptionValue::Flag(default), "true or false", |raw| {
            let flag = match raw {
                OptionValue::Flag(flag) => Some(*flag),
                OptionValue::Text(text) => text.parse().ok(),
                OptionValue::Number(_) | OptionValue::Integer(_) => None,
            }?;
            Some((flag, OptionValue::Flag(flag)))
        })
    }

    /// One of these names.
    pub fn choice<T: Copy>(&mut self, name: &'static str, default: &str, choices: &[(&str, T)]) -> Result<T> {
        let legal: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
        self.take(name, OptionValue::Text(default.to_owned()), &legal.join(", "), |raw| chosen(raw, choices))
    }

    /// One of these names, or a positive number.
    pub fn choice_or_number<T: Copy>(
        &mut self,
        name: &'static str,
        default: &str,
        choices: &[(&str, T)],
        number: impl Fn(f64) -> T,
    ) -> Result<T> {
        let legal: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
        let legal = format!("{} or a positive number", legal.join(", "));
        self.take(name, OptionValue::Text(default.to_owned()), &legal, |raw| match as_number(raw) {
            Some(x) => (x.is_finite() && x > 0.0).then(|| (number(x), OptionValue::Number(x))),
            None => chosen(raw, choices),
        })
    }

    /// Reads options that count only where `counts`: beside the value of another one, which `beside` names.
    pub fn only<T>(
        &mut self,
        beside: &'static str,
        counts: bool,
        read: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if !counts && self.mode != Mode::Describing {
            return Ok(None);
        }
        self.beside = Some(beside);
        let made = read(self);
        self.beside = None;
        made.map(Some)
    }

    fn take<T>(
        &mut self,
        name: &'static str,
        default: OptionValue,
        legal: &str,
        read: impl Fn(&OptionValue) -> Option<(T, OptionValue)>,
    ) -> Result<T> {
        self.described.push(Described { name, default: default.clone(), legal: legal.to_owned(), beside: self.beside });
        let given = self.given.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value);
        let read_of = |raw: &OptionValue| {
            let refused = || Error::OptionValue { name: name.to_owned(), got: shown(raw), expected: legal.to_owned() };
            read(raw).ok_or_else(refused)
        };
        let made = match given.map(read_of) {
            Some(Err(_)) if self.mode != Mode::Strict => read_of(&default),
            None => read_of(&default),
            Some(made) => made,
        };
        let (made, value) = made?;
        self.resolved.push((name.to_owned(), value));
        Ok(made)
    }
}

fn chosen<T: Copy>(raw: &OptionValue, choices: &[(&str, T)]) -> Option<(T, OptionValue)> {
    let OptionValue::Text(text) = raw else { return None };
    choices.iter().find(|(name, _)| name == text).map(|(_, choice)| (*choice, raw.clone()))
}

fn as_number(value: &OptionValue) -> Option<f64> {
    match value {
        OptionValue::Number(number) => Some(*number),
        OptionValue::Integer(integer) => Some(*integer as f64),
        OptionValue::Text(text) => text.trim().parse().ok(),
        OptionValue::Flag(_) => None,
    }
}

fn shown(value: &OptionValue) -> String {
    match value {
        OptionValue::Text(text) => format!("'{text}'"),
        OptionValue::Number(number) => number.to_string(),
        OptionValue::Integer(integer) => integer.to_string(),
        OptionValue::Flag(flag) => flag.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str, value: OptionValue) -> Options {
        vec![(name.to_owned(), value)]
    }

    /// A size, whose unit may be another one, and a factor that counts beside large sizes only.
    fn sample(options: &mut Reader) -> Result<(&'static str, Option<f64>)> {
        let size = options.choice("size", "small", &[("small", "s"), ("large", "l")])?;
        let factor = options.only("size=large", size == "l", |options| options.non_negative("factor", 2.0))?;
        options.flag("round", true)?;
        Ok((size, factor))
    }

    #[test]
    fn what_is_not_given_is_the_default() {
        let (made, resolved) = resolve("sample", &[], sample).unwrap();
        assert_eq!(made, ("s", None));
        assert_eq!(resolve("sample", &resolved, sample).unwrap().1, resolved);
        let names: Vec<_> = resolved.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["size", "round"]);
    }

    #[test]
    fn a_slip_of_the_hand_is_shown_the_nearest_name() {
        let message = resolve("sample", &given("sizes", OptionValue::Integer(1)), sample).unwrap_err().to_string();
        assert_eq!(message, "sample has no option 'sizes'; did you mean 'size'? it has size, round");
    }

    #[test]
    fn an_option_may_count_beside_another_only() {
        let mut options = given("factor", OptionValue::Integer(3));
        assert!(matches!(resolve("sample", &options, sample), Err(Error::UnknownOption { .. })));
        options.extend(given("size", OptionValue::Text("large".to_owned())));
        assert_eq!(resolve("sample", &options, sample).unwrap().0, ("l", Some(3.0)));
        let described = describe(sample).unwrap();
        assert_eq!(described.iter().map(|option| option.beside).collect::<Vec<_>>(), [None, Some("size=large"), None]);
    }

    #[test]
    fn a_whole_number_has_a_least_value_and_a_limit_may_be_none() {
        let read = |options: &mut Reader| {
            Ok((options.whole("window", 32, 1)?, options.none_or_number("stop", "a number below 0", |x| x < 0.0)?))
        };
        assert_eq!(resolve("sample", &[], read).unwrap().0, (32, None));
        let mut options = given("window", OptionValue::Text("8".to_owned()));
        options.extend(given("stop", OptionValue::Number(-0.5)));
        assert_eq!(resolve("sample", &options, read).unwrap().0, (8, Some(-0.5)));
        for (name, value) in [("window", 0.0), ("window", 1.5), ("window", 1e10), ("stop", 0.5), ("stop", f64::NAN)] {
            let refused = resolve("sample", &given(name, OptionValue::Number(value)), read);
            assert!(matches!(refused, Err(Error::OptionValue { .. })), "{name} {value}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_refused() {
        let large = ("size".to_owned(), OptionValue::Text("large".to_owned()));
        for factor in [f64::NAN, -1.0, f64::INFINITY] {
            let options = [large.clone(), ("factor".to_owned(), OptionValue::Number(factor))];
            assert!(matches!(resolve("sample", &options, sample), Err(Error::OptionValue { .. })));
        }
        for value in [OptionValue::Integer(1), OptionValue::Text("yes".to_owned())] {
            let message = resolve("sample", &given("round", value), sample).unwrap_err().to_string();
            assert!(message.contains("expected true or false"), "{message}");
        }
    }
}
