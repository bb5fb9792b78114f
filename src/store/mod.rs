//! What a pipeline remembers between its runs: scores by text, and a record of each run.
//!
//! ```text
//! <store>/lock.json   one run at a time
//! <store>/scores/     Delta table, one partition a model: key of the texts → prediction
//! <store>/runs/       Delta table, one row a run
//! ```
//!
//! A score is found by the model (weights, tokenizer and configuration, `max_length`, precision) and by the texts, and
//! by nothing else; so a changed model forgets by itself, and a text that moves to another row is still known.

mod functions;
mod record;
mod runs;
mod scores;
mod source_file;
mod stages;

pub use functions::{text_error, text_key};
pub use record::{Outcome, RunRecord};
pub use runs::Runs;
pub use scores::{Garbage, ScoreStore, collect_garbage, model_class};
pub use source_file::SourceFile;
pub use stages::EarlierStages;
