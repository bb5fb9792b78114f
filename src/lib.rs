//! couplet scores sentence pairs in bulk.
//!
//! It reads pairs, or single sentences, with SQL from Parquet, delimited text, JSON or Arrow files, local or in
//! buckets; runs them through a `DistilBERT` or BERT encoder without padding; remembers the scores from night to night; and
//! publishes predictions as a Parquet file, a folder of runs or a Delta table, whole or not at all.
//!
//! ```text
//! pipeline.toml ── config ── Pipeline
//!                               │
//!  tables ── source query ── windows ──▶ scorer ──▶ store ──▶ sink
//!  (DataFusion)                           │
//!                           tokenize → pack → encoder → head
//! ```
//!
//! Where a pipeline has labels or plain text, [`train`] makes the model first.
//!
//! The program is `couplet`; as a library, [`run::run`] executes a pipeline, [`predict::install`] gives the SQL
//! function to any `DataFusion` session, and [`scorer::Scorer`] scores windows of texts without any SQL:
//!
//! ```
//! use std::sync::Arc;
//!
//! use couplet::datafusion::execution::SessionStateBuilder;
//! use couplet::datafusion::prelude::{ParquetReadOptions, SessionContext};
//! use couplet::predict::{self, Models};
//! use couplet::scorer::Pool;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // A thread for each core; models are found from the current folder, and loaded when a query first needs them.
//!     let models = Arc::new(Models::new(Pool::new(None)?, std::env::current_dir()?));
//!     let state = predict::install(SessionStateBuilder::new().with_default_features(), models).build();
//!     let context = SessionContext::new_with_state(state);
//!
//!     context.register_parquet("pairs", "pipelines/quickstart/pairs.parquet", ParquetReadOptions::default()).await?;
//!     let answers = context
//!         .sql(
//!             "SELECT predict('pipelines/quickstart/model', sentence1, sentence2)['label'] AS answer, count(*) AS n
//!              FROM (SELECT * FROM pairs LIMIT 16) GROUP BY answer ORDER BY n DESC",
//!         )
//!         .await?;
//! #   let rows: usize = answers.clone().collect().await?.iter().map(|batch| batch.num_rows()).sum();
//! #   assert!((1..=2).contains(&rows));
//!     answers.show().await?;
//!     Ok(())
//! }
//! ```

/// The version that a session must be of.
pub use datafusion;

mod chart;
pub mod cli;
pub mod config;
mod crash;
pub mod delta;
pub mod error;
mod files;
pub mod histogram;
pub mod history;
pub mod hub;
pub mod init;
pub mod lock;
pub mod logging;
pub mod model;
pub mod objects;
pub mod ops;
pub mod page;
pub mod parameters;
pub mod predict;
pub mod progress;
pub mod prometheus;
pub mod query;
pub mod report;
pub mod run;
pub mod scorer;
pub mod session;
pub mod shell;
pub mod sink;
pub mod source;
mod sql_error;
pub mod store;
pub mod tables;
pub mod train;
mod yielding;
