//! couplet scores sentence pairs in bulk.
//!
//! It reads pairs, or single sentences, with SQL from Parquet, delimited text, JSON or Arrow files, local or in
//! buckets; runs them through a `DistilBERT` or BERT encoder without padding; caches the scores between runs; and
//! publishes predictions atomically as a Parquet file, a folder of runs or a Delta table.
//!
//! ```text
//! pipeline.toml ── config ── Pipeline
//!                               │
//!  tables ── source query ── windows ──▶ scorer ──▶ store ──▶ sink
//!  (DataFusion)                           │
//!                           tokenize → pack → encoder → head
//! ```
//!
//! If a pipeline has training stages, [`train`] trains the model first, on labelled rows or plain text.
//!
//! The program is `couplet`. As a library, [`run::run`] executes a pipeline, [`predict::install`] registers the SQL
//! function in any `DataFusion` session, and [`scorer::Scorer`] scores windows of texts without SQL.
#![doc = ""]
#![doc = include_str!("../docs/rust.md")]
#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests open files that they created"))]

/// The version of `DataFusion` that sessions must use.
pub use datafusion;

pub use couplet_encoder::ops;

mod backtrace;
mod bounded_functions;
mod chart;
pub mod cli;
pub mod cluster;
pub mod config;
mod crash;
mod dates;
pub mod delta;
pub mod error;
mod escape;
pub mod files;
mod frequent;
mod from_first;
pub mod histogram;
pub mod history;
pub mod hub;
pub mod init;
mod literals;
pub mod lock;
pub mod logging;
pub mod model;
pub mod objects;
pub mod page;
pub mod parameters;
pub mod place;
pub mod predict;
pub mod progress;
pub mod prometheus;
pub mod query;
mod redact;
pub mod report;
pub mod run;
pub mod scorer;
pub mod session;
pub mod shell;
pub mod sink;
pub mod source;
mod sql_depth;
mod sql_error;
pub mod store;
pub mod tables;
pub mod terminal;
pub mod train;
pub mod trouble;
mod types;
mod words;
mod yielding;
