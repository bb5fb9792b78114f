//! The validated pipeline: the contents of a pipeline file, with all rules checked and all defaults filled in.
//!
//! [`super::parse`] creates these values; no later code checks them again.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use couplet_encoder::scorer::{DeviceSetting, PrecisionSetting};
use couplet_storage::place::Place;
use couplet_tables::tables::{Location, Table};

use super::stages::{Evaluate, Finetune, Pretrain};

/// A batch job, as described by its pipeline file.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// The name of the pipeline: letters, digits, `-` and `_`; its sink is an SQL table of this name.
    pub name: String,
    /// The pipeline file.
    pub path: PathBuf,
    /// The tables that SQL can name, in the order of the file.
    pub tables: Vec<Table>,
    /// The pretraining stage, which runs first.
    pub pretrain: Option<Pretrain>,
    /// The fine-tuning stage.
    pub finetune: Option<Finetune>,
    /// The evaluation stage.
    pub evaluate: Option<Evaluate>,
    /// The scoring stage, which runs last.
    pub scoring: Option<Scoring>,
    /// Threads, memory and batch sizes.
    pub run: RunSettings,
    /// The given variables that the pipeline file does not use.
    ///
    /// Always empty with [`Query::Sql`]. With [`Query::File`], the SQL file may use them. A variable that is still
    /// unused after [`super::substitute`] is the user's mistake.
    pub unused_variables: BTreeSet<String>,
}

impl Pipeline {
    /// Returns the queries of all stages, each with the key that names its SQL file.
    pub fn queries(&self) -> impl Iterator<Item = (&'static str, &Query)> {
        let pretrain = self.pretrain.iter().map(|stage| ("pretrain.file", &stage.learning.query));
        let finetune = self.finetune.iter().map(|stage| ("finetune.file", &stage.learning.query));
        let evaluate = self.evaluate.iter().map(|stage| ("evaluate.file", &stage.query));
        let source = self.scoring.iter().map(|scoring| ("source.file", &scoring.source.query));
        pretrain.chain(finetune).chain(evaluate).chain(source)
    }
}

/// The settings of the scoring stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Scoring {
    /// The rows to score.
    pub source: Source,
    /// The model.
    pub model: ModelSettings,
    /// Cache, checkpoints and rejected rows.
    pub score: ScoreSettings,
    /// The destination of the predictions.
    pub sink: Sink,
}

/// A location that must be on the local disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPath {
    /// The text of the pipeline file, variables not replaced; for messages.
    pub written: String,
    /// The path with its variables replaced, resolved against the folder of the pipeline file.
    pub path: PathBuf,
}

impl fmt::Display for LocalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl From<LocalPath> for Location {
    fn from(LocalPath { written, path }: LocalPath) -> Self {
        Self { written, place: Place::Local(path) }
    }
}

/// The rows to score, and the roles of their columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The query for the rows.
    pub query: Query,
    /// The columns that identify a row, at least one.
    pub id: Vec<String>,
    /// The text column, or the two text columns of a pair.
    pub text: Vec<String>,
    /// The column of gold labels.
    pub label: Option<String>,
}

/// The query of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// SQL in the pipeline file.
    Sql(Sql),
    /// An SQL file; its reader replaces the variables with [`super::substitute`].
    File(LocalPath),
}

/// SQL in a pipeline file, with its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql {
    /// The SQL with its variables replaced.
    pub text: String,
    /// The line of its first character, from 0.
    pub line: usize,
    /// The column of its first character, from 0.
    pub column: usize,
}

impl Sql {
    /// Returns the SQL padded with newlines and spaces, so that positions in it are positions in the file. After a
    /// variable or an escape, columns are those of the SQL.
    #[must_use]
    pub fn placed(&self) -> String {
        format!("{}{}{}", "\n".repeat(self.line), " ".repeat(self.column), self.text)
    }
}

/// The model settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The folder of the checkpoint.
    pub location: Location,
    /// The maximum length of an input, in tokens, special tokens included; longer inputs are truncated.
    pub max_length: usize,
    /// The number format of the forward pass.
    pub precision: PrecisionSetting,
    /// The device of the forward pass.
    pub device: DeviceSetting,
}

/// The cache, checkpoints and rejected rows.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreSettings {
    /// The folder that caches scores and records runs; by default `.couplet/NAME` in the folder of the file.
    pub store: Location,
    /// The most work lost if the process is killed.
    pub checkpoint: Duration,
    /// The share of rows, 0 to 1, that may be rejected before the run fails; 1 by default.
    pub max_errors: f64,
    /// The destination of rejected rows.
    pub errors: Errors,
}

/// The destination of rejected rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errors {
    /// The output, with the reason in the column `error`.
    Column,
    /// A separate table next to the output.
    Quarantine,
}

/// The destination of the predictions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sink {
    /// A Parquet file, or the folder of a table.
    pub location: Location,
    /// The format of the table.
    pub format: SinkFormat,
    /// The treatment of the rows of earlier runs.
    pub mode: SinkMode,
    /// The partition columns of a Delta table.
    pub partition_by: Vec<String>,
    /// The number of runs kept in a folder of Parquet files; `None` keeps all.
    pub keep: Option<usize>,
}

impl Sink {
    /// Returns true if the sink is a single Parquet file.
    #[must_use]
    pub fn is_one_file(&self) -> bool {
        self.format == SinkFormat::Parquet && self.location.place.extension() == Some("parquet")
    }
}

/// The format of the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkFormat {
    /// One Parquet file, or a folder with one subfolder per run.
    Parquet,
    /// A Delta table.
    Delta,
}

/// The treatment of the rows of earlier runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkMode {
    /// They are deleted.
    Overwrite,
    /// They are kept.
    Append,
    /// They are kept, unless a new row has the same id.
    Merge,
}

/// Threads, memory and batch sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSettings {
    /// The number of inference threads; `None` for one per core.
    pub threads: Option<usize>,
    /// The number of rows that are sorted by length and packed together.
    pub window: usize,
    /// The number of tokens in a packed batch; `None` for the model's default.
    pub batch_tokens: Option<usize>,
    /// The maximum number of tokens in a cluster task.
    pub task_tokens: usize,
    /// The memory for joins and sorts, in bytes; data that does not fit is spilled to disk.
    pub memory: u64,
    /// The folder for the source rows during a run, and for data that does not fit into memory.
    pub spill: PathBuf,
}
