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

pub use couplet_cluster as cluster;
pub use couplet_encoder::{model, ops, scorer};
pub use couplet_storage::{files, hub, lock, objects, place};
pub use couplet_tables::{delta, predict, session, sink, source, store, tables};
pub use couplet_train as train;

pub mod cli;
pub mod config;
pub mod error;
mod frequent;
pub mod history;
pub mod init;
pub mod logging;
pub mod page;
pub mod parameters;
pub mod progress;
pub mod prometheus;
pub mod query;
pub mod report;
pub mod run;
pub mod shell;
pub mod terminal;
