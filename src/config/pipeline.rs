//! The validated pipeline: what a pipeline file says once every rule has been checked and every default filled in.
//!
//! These are plain values. [`super::parse`] makes them; nothing after it checks them again.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::place::Place;
use crate::train::finetune::Calibrate;
use crate::train::metrics::Metric;
use crate::train::promotion::Condition;
use crate::train::sampling::ClassWeights;
use crate::train::task::Task;

/// The default of `model.max_length`, in tokens.
pub const DEFAULT_MAX_LENGTH: usize = 128;
/// The default of `run.window`, in rows.
pub const DEFAULT_WINDOW: usize = 8192;
/// The default of `run.memory`, in bytes.
pub const DEFAULT_MEMORY: u64 = 2 << 30;
/// The default of `score.checkpoint`.
pub const DEFAULT_CHECKPOINT: Duration = Duration::from_mins(1);

/// One batch job, as its pipeline file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// The name of the pipeline: letters, digits, `-` and `_`; its sink is a SQL table of this name.
    pub name: String,
    /// The pipeline file.
    pub path: PathBuf,
    /// The tables that SQL can name, in the order of the file.
    pub tables: Vec<Table>,
    /// The stage that teaches an encoder a kind of text; the first to run.
    pub pretrain: Option<Pretrain>,
    /// The stage that teaches an encoder a task.
    pub finetune: Option<Finetune>,
    /// The stage that measures a model.
    pub evaluate: Option<Evaluate>,
    /// The stage that scores; the last to run.
    pub scoring: Option<Scoring>,
    /// How the machine is used.
    pub run: RunSettings,
    /// The variables that were given but that the pipeline file does not use.
    ///
    /// Always empty with [`Query::Sql`]. With [`Query::File`] the SQL file may use them: what is then still
    /// unused after [`super::substitute`] is the user's mistake.
    pub unused_variables: BTreeSet<String>,
}

impl Pipeline {
    /// The queries of all stages, with the key under which a file of SQL stands.
    pub fn queries(&self) -> impl Iterator<Item = (&'static str, &Query)> {
        let pretrain = self.pretrain.iter().map(|stage| ("pretrain.file", &stage.learning.query));
        let finetune = self.finetune.iter().map(|stage| ("finetune.file", &stage.learning.query));
        let evaluate = self.evaluate.iter().map(|stage| ("evaluate.file", &stage.query));
        let source = self.scoring.iter().map(|scoring| ("source.file", &scoring.source.query));
        pretrain.chain(finetune).chain(evaluate).chain(source)
    }
}

/// What is scored, by what, and where the predictions go.
#[derive(Debug, Clone, PartialEq)]
pub struct Scoring {
    /// Where the pairs come from.
    pub source: Source,
    /// What scores them.
    pub model: ModelSettings,
    /// How they are scored.
    pub score: ScoreSettings,
    /// Where the predictions go.
    pub sink: Sink,
}

/// What the two stages of training have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Learning {
    /// The query that gives the rows.
    pub query: Query,
    /// The folder of the model that it ends with.
    pub output: LocalPath,
    /// The length at which an input is cut, in tokens.
    pub max_length: usize,
    /// How often each row is learned from.
    pub epochs: usize,
    /// Rows in an update.
    pub batch_size: usize,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// What becomes of it.
    pub schedule: ScheduleShape,
    /// The share of the updates in which it rises from 0.
    pub warmup: f64,
    /// The decay of weights that are neither biases nor of a normalisation.
    pub weight_decay: f64,
    /// What Adam adds to the root of the second moment.
    pub adam_epsilon: f64,
    /// The norm to which a longer gradient is shortened.
    pub max_grad_norm: f64,
    /// Of everything that is random.
    pub seed: u64,
    /// How much work a kill may cost.
    pub checkpoint: Duration,
}

/// The rows that a model is measured with while it learns from the others.
#[derive(Debug, Clone, PartialEq)]
pub enum Validation {
    /// A share of the rows, by a hash of their ids.
    Share(f64),
    /// Rows of their own.
    Sql(String),
}

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleShape {
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 like half a wave.
    Cosine,
    /// Stays.
    Constant,
}

/// The stage that hides words and learns to fill them in.
#[derive(Debug, Clone, PartialEq)]
pub struct Pretrain {
    /// Data and hyper-parameters.
    pub learning: Learning,
    /// What training starts from.
    pub start: Start,
    /// The column of texts.
    pub text: String,
    /// The share of the texts that is held out to measure on, by a hash of the text.
    pub validation: f64,
    /// The share of tokens that are hidden.
    pub mask_probability: f64,
    /// Other shares at which the held-out texts are measured too, before and after.
    pub measure_at: Vec<f64>,
}

/// What pretraining starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The folder of a model.
    Model(Location),
    /// Random weights.
    Random {
        /// A `config.json`, by whatever name, or the folder of one.
        config: LocalPath,
        /// A folder with a tokenizer.
        tokenizer: LocalPath,
    },
}

/// The stage that learns a task from labelled rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Finetune {
    /// Data and hyper-parameters.
    pub learning: Learning,
    /// The folder of the model that training starts from.
    pub base: Location,
    /// The task.
    pub task: Task,
    /// The rows that are held out to measure on.
    pub validation: Validation,
    /// The columns that name a row, for the choice of those that are held out; the texts if not given.
    pub id: Option<Vec<String>>,
    /// A text, or a text and its pair.
    pub text: Vec<String>,
    /// The column of labels.
    pub label: String,
    /// The labels in the order of the model's outputs; learned from the rows if not given.
    pub labels: Option<Vec<String>>,
    /// What part of each label is shared out among all.
    pub label_smoothing: f64,
    /// How much each label weighs in the loss.
    pub class_weights: ClassWeights,
    /// Epochs without a better model after which training stops.
    pub patience: Option<usize>,
    /// What decides which epoch's model is the best; the task's main one if not given.
    pub metric: Option<Metric>,
    /// What the new model must reach to take the place of the old one.
    pub promote_if: Option<Condition>,
    /// What is fitted on the held-out rows when training is over.
    pub calibrate: Calibrate,
}

/// The stage that measures a model on labelled rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate {
    /// The query that gives the rows.
    pub query: Query,
    /// The columns that name a row in messages; the texts if not given.
    pub id: Option<Vec<String>>,
    /// A text, or a text and its pair.
    pub text: Vec<String>,
    /// The column of labels.
    pub label: String,
    /// The task, which says what labels mean; the plain one that suits the model if not given.
    pub task: Option<Task>,
    /// The model, and how it is run.
    pub model: ModelSettings,
    /// The columns by which the rows are sliced.
    pub slices: Vec<String>,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// The share of them that lies in an interval.
    pub level: f64,
    /// Of the bootstrap.
    pub seed: u64,
    /// The folder that the report and the mistakes are written to.
    pub output: LocalPath,
}

/// A place as a pipeline file names it: a file, a folder (ends in `/` or has no extension), or a glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The text of the pipeline file, variables not replaced; for messages.
    pub written: String,
    /// The place with its variables replaced; a path is resolved against the folder of the pipeline file.
    pub place: Place,
}

impl Location {
    /// The path, if the place is on the local disk.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        self.place.local()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The same for what must be on the local disk.
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

/// A table that SQL can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The name of the table, a SQL identifier.
    pub name: String,
    /// The files of the table.
    pub location: Location,
    /// How the files are read.
    pub format: TableFormat,
    /// The columns that are read from folder names such as `dt=2026-01-01`, outermost first.
    pub partitions: Vec<String>,
}

/// How the files of a table are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableFormat {
    /// Apache Parquet.
    Parquet,
    /// Delimited text: `csv` and `tsv`.
    Csv(CsvOptions),
    /// One JSON object a line.
    Json {
        /// How the files are compressed.
        compression: Compression,
    },
    /// Apache Arrow IPC files.
    Arrow,
    /// A Delta table.
    Delta {
        /// The version that is read; the newest if not given.
        version: Option<u64>,
    },
    /// A folder in which a pipeline's runs have their folders.
    Runs {
        /// Whether all runs are read, or the newest.
        all: bool,
    },
}

impl TableFormat {
    /// What people call it.
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self {
            Self::Parquet => "Parquet",
            Self::Csv(_) => "CSV",
            Self::Json { .. } => "JSON",
            Self::Arrow => "Arrow",
            Self::Delta { .. } => "Delta",
            Self::Runs { .. } => "a folder of runs",
        }
    }
}

/// How delimited text is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvOptions {
    /// The byte between two fields: `,` for `csv`, a tabulator for `tsv`, unless the file says otherwise.
    pub delimiter: u8,
    /// Whether the first line names the columns; true unless the file says otherwise.
    pub header: bool,
    /// The byte around a field that contains the delimiter, `"` unless the file says otherwise; `None`: no byte
    /// has that meaning.
    pub quote: Option<u8>,
    /// The field that means NULL besides the empty one.
    pub null: Option<String>,
    /// How the files are compressed.
    pub compression: Compression,
}

/// How a text file is compressed, told by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz`.
    Gzip,
    /// `.zst`.
    Zstd,
}

/// Where the pairs come from, and which columns mean what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The query that gives the rows.
    pub query: Query,
    /// The columns that name a row, at least one.
    pub id: Vec<String>,
    /// The columns that are scored: a text, or a text and its pair.
    pub text: Vec<String>,
    /// The column of gold labels.
    pub label: Option<String>,
}

/// The query of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// SQL that stands in the pipeline file, its variables replaced.
    Sql(String),
    /// A file of SQL; whoever reads it replaces the variables of its text with [`super::substitute`].
    File(LocalPath),
}

/// What scores the pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The folder of the checkpoint.
    pub location: Location,
    /// The length at which an input is cut, in tokens, special tokens included.
    pub max_length: usize,
    /// The number format of the forward pass.
    pub precision: Precision,
    /// Where the forward pass runs.
    pub device: Device,
}

/// The number format of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The quickest of the device that a self-check at load finds to change nothing that matters.
    Auto,
    /// 32-bit floats, the same on every machine.
    F32,
    /// 16-bit integers with exact sums in the encoder's linear layers, 32-bit floats elsewhere; on x86-64 only.
    Int16,
    /// 16-bit floats of the IEEE; on GPUs only.
    F16,
    /// 16-bit floats with the exponents of f32; on GPUs only.
    Bf16,
}

/// Where the forward pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The best device of this machine.
    Auto,
    /// The processor.
    Cpu,
    /// The NVIDIA card of this number.
    Cuda(usize),
    /// Apple's graphics processor.
    Metal,
}

/// How the pairs are scored.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreSettings {
    /// The folder in which scores and runs are remembered; `.couplet/NAME` beside the file unless it says otherwise.
    pub store: Location,
    /// How much work a kill may cost.
    pub checkpoint: Duration,
    /// The share of rows, 0 to 1, that may be rejected before the run fails; 1 unless the file says otherwise.
    pub max_errors: f64,
    /// Where rejected rows go.
    pub errors: Errors,
}

/// Where rejected rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errors {
    /// Among the others, with the reason in the column `error`.
    Column,
    /// To a table of their own, beside the others'.
    Quarantine,
}

/// Where the predictions go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sink {
    /// A Parquet file, or the folder of a table.
    pub location: Location,
    /// What kind of table.
    pub format: SinkFormat,
    /// What becomes of the rows of earlier runs.
    pub mode: SinkMode,
    /// The columns by whose values the files of a Delta table are put into folders.
    pub partition_by: Vec<String>,
    /// How many runs stay in a folder of Parquet files; all, if not given.
    pub keep: Option<usize>,
}

impl Sink {
    /// Whether the table is one Parquet file.
    #[must_use]
    pub fn is_one_file(&self) -> bool {
        self.format == SinkFormat::Parquet && self.location.place.extension() == Some("parquet")
    }
}

/// What kind of table the predictions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkFormat {
    /// One Parquet file, or a folder in which each run has a folder.
    Parquet,
    /// A Delta table.
    Delta,
}

/// What becomes of the rows of earlier runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkMode {
    /// They are replaced.
    Overwrite,
    /// They stay.
    Append,
    /// They stay, unless a new row has their id.
    Merge,
}

/// How the machine is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSettings {
    /// The number of inference threads; `None`: one a core.
    pub threads: Option<usize>,
    /// The number of rows that are sorted by length and packed together.
    pub window: usize,
    /// The number of tokens in a packed batch; `None`: couplet's choice.
    pub batch_tokens: Option<usize>,
    /// The memory of joins and sorts, in bytes; what does not fit is spilled.
    pub memory: u64,
    /// The folder in which the rows of a run are kept while it lasts, and what does not fit into memory.
    pub spill: PathBuf,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            threads: None,
            window: DEFAULT_WINDOW,
            batch_tokens: None,
            memory: DEFAULT_MEMORY,
            spill: std::env::temp_dir(),
        }
    }
}
