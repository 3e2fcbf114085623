//! The tree core of treegrpo.
pub mod advantage;
pub mod error;
pub mod forest;
pub mod options;
pub mod pack;
#[cfg(feature = "python")]
mod python;
pub mod select;
pub mod value;
