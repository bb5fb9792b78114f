//! couplet on `DataFusion`: tables, the SQL function `predict()`, cached scores, sinks.
//!
//! | Module | Content |
//! |---|---|
//! | [`source`] | the source query; checks its columns and ids before any scoring |
//! | [`store`] | cached scores by model and texts, run records; the marker of a store |
//! | [`session`] | the `DataFusion` session: settings, tables, functions, memory, spilling |
//! | [`sql_error`] | `DataFusion`'s errors, reworded with hints |
//! | [`predict`] | the SQL function `predict()`, and the rule that scores each row once |
//! | [`tables`] | files as SQL tables; finds the position in a file at which a reader failed |
//! | [`sink`] | Parquet files, folders of runs and Delta tables that appear complete or not at all |
//! | [`delta`] | Delta tables in any object store |

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests open files that they created"))]

pub mod bounded_functions;
pub mod dates;
pub mod delta;
pub mod from_first;
pub mod histogram;
mod literals;
pub mod predict;
pub mod session;
pub mod sink;
pub mod source;
pub mod sql_depth;
pub mod sql_error;
pub mod store;
pub mod tables;
pub mod types;
mod yielding;
