//! The validated pipeline: what a pipeline file says once every rule has been checked and every default filled in.
//!
//! These are plain values. [`super::parse`] makes them; nothing after it checks them again.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::stages::{Evaluate, Finetune, Pretrain};
use crate::place::Place;
use crate::scorer::DeviceSetting;

/// The default of `model.max_length`, in tokens.
pub const DEFAULT_MAX_LENGTH: usize = 128;
/// The default of `run.window`, in rows.
pub const DEFAULT_WINDOW: usize = 8192;
/// The default of `run.memory`, in bytes.
pub const DEFAULT_MEMORY: u64 = 2 << 30;
/// Tokens of a task that a cluster hands out, if nothing is said: a minute or a few.
pub const DEFAULT_TASK_TOKENS: usize = 500_000;
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

/// A place as a pipeline file names it: a file, a folder (ends in `/` or has no extension), or a glob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableFormat {
    /// Apache Parquet.
    Parquet,
    /// Delimited text: `csv` and `tsv`.
    Csv(CsvOptions),
    /// One JSON object a line.
    Json {
        /// Columns whose type is given, not inferred.
        types: ColumnTypes,
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
        /// Where the runs are published: of those that are not there, no rows are read.
        published_in: Option<Place>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsvOptions {
    /// The byte between two fields: `,` for `csv`, a tabulator for `tsv`, unless the file says otherwise.
    pub delimiter: u8,
    /// Whether the first line names the columns; true unless the file says otherwise.
    pub header: bool,
    /// The byte around a field that contains the delimiter, `"` unless the file says otherwise; `None`: no byte
    /// has that meaning.
    pub quote: Option<u8>,
    /// The byte that takes its meaning from a quotation mark, or from itself, behind it in a quoted field; `None`: a
    /// quotation mark is doubled.
    pub escape: Option<u8>,
    /// The field that means NULL besides the empty one.
    pub null: Option<String>,
    /// Columns whose type is given, not inferred.
    pub types: ColumnTypes,
}

/// Columns of a text file with the types that they are read as, in the order of the pipeline file.
pub type ColumnTypes = Vec<(String, ColumnType)>;

/// The type of a column of a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnType {
    /// Text, as it stands in the file.
    Text,
    /// A signed whole number of 64 bits.
    Integer,
    /// A floating-point number of 64 bits.
    Float,
    /// A decimal number.
    Decimal {
        /// Digits, at most 38.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// `true` or `false`.
    Boolean,
    /// A date, `2026-01-31`.
    Date,
    /// A date with a time and no offset, `2026-01-31T12:00:00`.
    Timestamp,
    /// A date with a time and an offset, `2026-01-31T12:00:00+01:00`; read as UTC.
    TimestampTz,
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
    /// SQL that stands in the pipeline file.
    Sql(Sql),
    /// A file of SQL; whoever reads it replaces the variables of its text with [`super::substitute`].
    File(LocalPath),
}

/// SQL in a pipeline file, and where it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql {
    /// The SQL, its variables replaced.
    pub text: String,
    /// The line on which it begins, from 0.
    pub line: usize,
    /// The column at which it begins, from 0.
    pub column: usize,
}

impl Sql {
    /// The SQL behind as many lines and columns as in the file, so that places in it are places in the file. Behind a
    /// variable or an escape, columns are those of the SQL.
    #[must_use]
    pub fn placed(&self) -> String {
        format!("{}{}{}", "\n".repeat(self.line), " ".repeat(self.column), self.text)
    }
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
    pub device: DeviceSetting,
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
    /// The number of tokens in a task that a cluster hands out, at most.
    pub task_tokens: usize,
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
            task_tokens: DEFAULT_TASK_TOKENS,
            memory: DEFAULT_MEMORY,
            spill: std::env::temp_dir(),
        }
    }
}
