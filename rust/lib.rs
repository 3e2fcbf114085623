//! The tree core of treegrpo: rollouts that branch at turns become advantages and training rows.
//!
//! Read it downhill: [`forest`] holds the tables, which [`concat`] joins and [`chains`] makes of plain rows; [`value`]
//! carries rewards up, [`estimators`] compare them in the groups of [`normalise`] or at merged [`states`], [`advantage`]
//! scores a forest by the sum of some of them, its [`terms`], and [`explain`] takes a score apart. [`pack`] lays out
//! every token once for training and [`micro_batch`] cuts that into forwards; [`trie`] finds the tokens that paths share,
//! [`token_tree`] says what each token sees; [`rows`] repeats shared prefixes, a row a leaf, and [`leaves`] is the table
//! that statistics are made of. [`rules`] say which nodes grow, [`draws`] and [`select`] draw by a key, [`options`] reads
//! settings and [`error`] says everything that can be wrong. The module that binds all this to Python stands behind the
//! feature `python`.
//!
//! ```
//! use treegrpo::advantage::score;
//! use treegrpo::forest::{DONE, Forest, OPEN, Tokens};
//! use treegrpo::credit::Weighing;
//! use treegrpo::pack::pack;
//! use treegrpo::rows::chain_rows;
//!
//! // A prompt, one shared turn, and two ends of it: one right, one wrong.
//! let mut forest = Forest::new();
//! let root = forest.add_tree(0, &[1, 2])?;
//! let turn = |token_ids| Tokens { token_ids, sampled: &[true], logprobs: &[-0.7] };
//! let shared = forest.add_node(root, turn(&[3]), OPEN, 0)?;
//! let right = forest.add_node(shared, turn(&[4]), DONE, 0)?;
//! let wrong = forest.add_node(shared, turn(&[5]), DONE, 0)?;
//! forest.set_reward(right, 1.0)?;
//! forest.set_reward(wrong, 0.0)?;
//! assert_eq!(forest.context(right)?, [1, 2, 3, 4]);
//!
//! // Half of what is below the shared turn is right; each end gains or loses the other half.
//! let scores = score(&forest, "parent", &[])?;
//! assert_eq!(scores.value, [0.5, 0.5, 1.0, 0.0]);
//! assert_eq!(scores.advantage, [0.0, 0.0, 0.5, -0.5]);
//!
//! // One training row an end; only sampled tokens count.
//! let rows = chain_rows(&forest, &scores, 1.0)?;
//! assert_eq!(rows.input_ids, [1, 2, 3, 4, 1, 2, 3, 5]);
//! assert_eq!(rows.loss_mask[..4], [false, false, true, true]);
//! assert_eq!(rows.advantages[..4], [0.0, 0.0, 0.0, 0.5]);
//!
//! // Or every token once: a forward of five tokens instead of eight, in which 3 predicts both 4 and 5.
//! let layout = pack(&forest, &scores, Weighing::default(), true, None)?;
//! assert_eq!(layout.tree.token_ids, [1, 2, 3, 4, 5]);
//! let [batch] = &layout.micro_batches(1024)?[..] else { unreachable!() };
//! assert_eq!(batch.predictors, [1, 2]);
//! assert_eq!((&batch.target_row[..], &batch.target_ids[..]), (&[0, 1, 1][..], &[3, 4, 5][..]));
//! # Ok::<(), treegrpo::error::Error>(())
//! ```

pub mod advantage;
pub mod chains;
pub mod concat;
mod continuations;
pub mod credit;
pub mod draws;
pub mod error;
pub mod estimators;
pub mod explain;
mod families;
pub mod forest;
pub mod leaves;
mod leaves_below;
pub mod micro_batch;
pub mod normalise;
mod numbering;
pub mod options;
pub mod pack;
#[cfg(feature = "python")]
mod python;
pub mod rows;
pub mod rules;
mod sampled;
pub mod select;
pub mod states;
pub mod terms;
pub mod token_tree;
pub mod trie;
pub mod value;
