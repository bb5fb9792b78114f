//! What a pipeline remembers between its runs: scores by text, and a record of each run.
//!
//! ```text
//! <store>/couplet-store.json   what makes the folder a store: version of the format, id
//! <store>/lock.json            one run at a time
//! <store>/scores/              Parquet files, a folder for each model: key of the texts → prediction
//! <store>/runs/                Delta table, one row per run
//! <store>/uploads/             notes of uploads that have not ended
//! <store>/cluster/             texts of the tasks of a cluster, while it scores them
//! ```
//!
//! A score is found by the model (weights, tokenizer and configuration, `max_length`, precision) and by the texts, and
//! by nothing else; so a changed model forgets by itself, and a text that moves to another row is still known.

mod adopt;
mod functions;
mod garbage;
mod names;
mod own;
mod record;
mod runs;
mod score_file;
mod scores;
mod stages;

pub use functions::{text_error, text_key};
pub use garbage::{Garbage, collect_garbage};
pub use own::{look, open, remove_staged};
pub use record::{Outcome, RunRecord};
pub use runs::Runs;
pub use scores::{ScoreStore, model_class};
pub use stages::EarlierStages;
