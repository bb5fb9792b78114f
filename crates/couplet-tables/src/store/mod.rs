//! The store of a pipeline, kept between its runs: cached scores by text, and a record of each run.
//!
//! ```text
//! <store>/couplet-store.json   marker of a store: version of the format, id
//! <store>/lock.json            one run at a time
//! <store>/scores/              Parquet files, one folder per model: key of the texts → prediction
//! <store>/runs/                Delta table, one row per run
//! <store>/uploads/             notes of unfinished uploads
//! <store>/cluster/             task texts, while a cluster scores them
//! ```
//!
//! A score is looked up by model (weights, tokenizer and configuration, `max_length`, precision) and texts only. So a
//! changed model invalidates its scores automatically, and a text that moves to another row keeps its score.

mod adopt;
mod error;
mod functions;
mod garbage;
mod names;
mod own;
mod record;
mod runs;
mod score_file;
mod scores;
mod stages;

pub use error::StoreError;
pub use functions::{text_error, text_key};
pub use garbage::{Garbage, collect_garbage};
pub use own::{open, open_existing, remove_staged};
pub use record::{Outcome, RunRecord, Speed};
pub use runs::Runs;
pub use scores::{ScoreStore, model_class};
pub use stages::Stages;
