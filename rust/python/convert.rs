//! What crosses the border: numbers, arrays, options and errors.

use std::fmt::Display;

use numpy::ndarray::ArrayView1;
use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::Error;
use crate::options::{Described, OptionValue, find};
use crate::terms::{Mask, Term};

pyo3::create_exception!(
    treegrpo_cli._core,
    CoreError,
    PyValueError,
    "A caller's mistake; `tree` and `node` say where, where it is about a node, and `reason` what, without the place."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| {
            let raised = CoreError::new_err(error.to_string());
            let place = error.place();
            let set = || {
                let value = raised.value(py);
                value.setattr("tree", place.map(|(tree, _)| tree))?;
                value.setattr("node", place.map(|(_, node)| node))?;
                value.setattr("reason", error.reason())
            };
            match set() {
                Ok(()) => raised,
                Err(other) => other,
            }
        })
    }
}

pub type Array<'py, T> = Bound<'py, PyArray1<T>>;
pub type Input<'py, T> = PyReadonlyArray1<'py, T>;

/// An integer in the range of `T`; another one is a ValueError.
pub struct Whole<T>(pub T);

macro_rules! whole {
    ($($kind:ty),*) => {$(
        impl<'a, 'py> FromPyObject<'a, 'py> for Whole<$kind> {
            type Error = PyErr;

            fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
                let taken = object.extract::<$kind>();
                taken.map(Self).map_err(|error| in_range(object.py(), error, <$kind>::MIN, <$kind>::MAX))
            }
        }
    )*};
}
whole!(u8, u32, u64, usize);

/// Integers of a key.
pub struct Key(pub Vec<i64>);

impl<'a, 'py> FromPyObject<'a, 'py> for Key {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self).map_err(|error| in_range(object.py(), error, i64::MIN, i64::MAX))
    }
}

fn in_range(py: Python<'_>, error: PyErr, least: impl Display, most: impl Display) -> PyErr {
    if error.is_instance_of::<PyOverflowError>(py) {
        PyValueError::new_err(format!("an integer is out of range, expected {least} to {most}"))
    } else {
        error
    }
}

/// Booleans of an array, whose bytes may hold any value: all but 0 are true, as they are to numpy.
pub struct Flags(pub Vec<bool>);

impl<'a, 'py> FromPyObject<'a, 'py> for Flags {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let array: Input<'py, bool> = object.extract()?;
        if array.is_empty() {
            return Ok(Self(vec![]));
        }
        if !array.is_contiguous() {
            return Err(PyTypeError::new_err("the given array is not contiguous"));
        }
        // SAFETY: the array holds `len` items of one byte, one behind the other, for as long as `array` is there. They
        // are read as bytes, of which any value is one, before they are bools.
        let bytes = unsafe { std::slice::from_raw_parts(array.data().cast::<u8>(), array.len()) };
        Ok(Self(bytes.iter().map(|&byte| byte != 0).collect()))
    }
}

/// A column that may be left out.
pub fn slice<'a, T: Element>(column: &'a Option<Input<'_, T>>) -> PyResult<Option<&'a [T]>> {
    Ok(column.as_ref().map(|array| array.as_slice()).transpose()?)
}

/// A read-only view of a column that `owner` holds and never changes or moves.
pub fn view<'py, T: Element>(owner: &Bound<'py, PyAny>, column: &[T]) -> PyResult<Array<'py, T>> {
    // SAFETY: the column stays where it is for as long as `owner` is there, and the view holds `owner`.
    let array = unsafe { PyArray1::borrow_from_array(&ArrayView1::from(column), owner.clone()) };
    array.call_method1("setflags", (false,))?;
    Ok(array)
}

#[derive(FromPyObject)]
enum GivenValue {
    Flag(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl From<GivenValue> for OptionValue {
    fn from(given: GivenValue) -> Self {
        match given {
            GivenValue::Flag(flag) => Self::Flag(flag),
            GivenValue::Integer(integer) => Self::Integer(integer),
            GivenValue::Number(number) => Self::Number(number),
            GivenValue::Text(text) => Self::Text(text),
        }
    }
}

/// Options as a dict gives them.
pub fn given_options(options: &Bound<'_, PyDict>) -> PyResult<Vec<(String, OptionValue)>> {
    let pair = |(name, value): (Bound<PyAny>, Bound<PyAny>)| {
        let name: String = name.extract()?;
        let value = value.extract::<GivenValue>().map_err(|_| Error::OptionType { name: name.clone() })?;
        Ok((name, value.into()))
    };
    options.iter().map(pair).collect()
}

/// Terms: an estimator's name with its options, or a list of dicts of `estimator`, `weight` and `options`.
pub fn given_terms(terms: &Bound<'_, PyAny>, options: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<Term>> {
    let options = options.map(given_options).transpose()?.unwrap_or_default();
    if let Ok(estimator) = terms.extract::<String>() {
        return Ok(vec![Term::alone(&estimator, &options)?]);
    }
    if !options.is_empty() {
        return Err(PyTypeError::new_err("options stand in their term"));
    }
    terms.extract::<Vec<Bound<'_, PyDict>>>()?.iter().map(given_term).collect()
}

fn given_term(term: &Bound<'_, PyDict>) -> PyResult<Term> {
    for key in term.keys() {
        let key: String = key.extract()?;
        find("key of a term", &["estimator", "weight", "mask", "options"], &key, |name| *name)?;
    }
    let given: GivenTerm = term.extract()?;
    let options = given.options.as_ref().map(given_options).transpose()?.unwrap_or_default();
    let mask = given.mask.as_deref().map(Mask::named).transpose()?;
    Ok(Term { weight: given.weight.unwrap_or(1.0), mask, ..Term::alone(&given.estimator, &options)? })
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct GivenTerm<'py> {
    estimator: String,
    #[pyo3(default)]
    weight: Option<f64>,
    #[pyo3(default)]
    mask: Option<String>,
    #[pyo3(default)]
    options: Option<Bound<'py, PyDict>>,
}

/// A term as a dict, with all its options.
pub fn term_dict<'py>(py: Python<'py>, term: &Term) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("estimator", term.estimator.name)?;
    dict.set_item("weight", term.weight)?;
    if let Some(mask) = term.mask {
        dict.set_item("mask", mask.name())?;
    }
    dict.set_item("options", options_dict(py, &term.options)?)?;
    Ok(dict)
}

/// Options as a dict.
pub fn options_dict<'py>(py: Python<'py>, options: &[(String, OptionValue)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in options {
        set_value(&dict, name, value)?;
    }
    Ok(dict)
}

/// Name -> what is known of the option.
pub fn described_dict<'py>(py: Python<'py>, options: &[Described]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for option in options {
        let fields = PyDict::new(py);
        set_value(&fields, "default", &option.default)?;
        fields.set_item("legal", &option.legal)?;
        fields.set_item("beside", option.beside)?;
        dict.set_item(option.name, fields)?;
    }
    Ok(dict)
}

fn set_value(dict: &Bound<'_, PyDict>, name: &str, value: &OptionValue) -> PyResult<()> {
    match value {
        OptionValue::Text(text) => dict.set_item(name, text),
        OptionValue::Number(number) => dict.set_item(name, number),
        OptionValue::Integer(integer) => dict.set_item(name, integer),
        OptionValue::Flag(flag) => dict.set_item(name, flag),
    }
}
