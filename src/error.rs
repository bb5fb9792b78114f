//! Everything that ends a command, with the exit code that a shell sees.

use datafusion::common::DataFusionError;
use thiserror::Error;

use crate::config::ConfigErrors;
use crate::scorer::ScorerError;
use crate::sink::SinkError;
use crate::source::SourceError;
use crate::tables::TableError;
use crate::tables::diagnose::Broken;

/// Why a command ended without its result.
#[derive(Debug, Error)]
pub enum Error {
    /// The pipeline file has mistakes.
    #[error(transparent)]
    Config(Box<ConfigErrors>),
    /// The command line or a file that it names is wrong.
    #[error("{0}")]
    Usage(String),
    /// Tables cannot be read.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tables(Vec<TableError>),
    /// SQL cannot be planned or executed.
    #[error("{context}: {}", sql_message(error))]
    Sql {
        /// Whose SQL it is.
        context: String,
        /// What DataFusion says.
        error: Box<DataFusionError>,
    },
    /// The source does not suit the pipeline.
    #[error("{pipeline}: {problem}")]
    Source {
        /// The pipeline file.
        pipeline: String,
        /// What does not suit.
        problem: String,
    },
    /// A file turned out to be broken while it was read.
    #[error("{0}; nothing was written")]
    BrokenFile(Broken),
    /// A model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ScorerError),
    /// The output cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// More rows were rejected than the pipeline allows.
    #[error("{rejected} of {rows} rows were rejected ({kinds}), more than score.max_errors = {max_errors} allows; nothing was written. Look at the rows, or raise max_errors")]
    TooManyErrors {
        /// Rows with an error.
        rejected: u64,
        /// Rows read.
        rows: u64,
        /// The kinds of errors with their numbers.
        kinds: String,
        /// The share that is allowed.
        max_errors: f64,
    },
    /// Rows were lost or made up: a bug.
    #[error("internal error: {read} rows were read and {written} written; nothing was published. Please report this")]
    RowsLost {
        /// Rows of the source by the first count.
        read: u64,
        /// Rows that came through.
        written: u64,
    },
    /// Ctrl-C, or a request to terminate.
    #[error("interrupted after {done} of {rows} rows; {kept}. Run the same command again to score all rows")]
    Interrupted {
        /// Rows scored.
        done: u64,
        /// Rows of the source.
        rows: u64,
        /// What is in the output's place now.
        kept: String,
    },
    /// The operating system refused something.
    #[error("{context}: {error}")]
    Io {
        /// What was being done.
        context: String,
        /// The refusal.
        error: std::io::Error,
    },
}

impl Error {
    /// 1: failed while running, 2: wrong usage or configuration, 130: interrupted.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) | Self::Tables(_) | Self::Source { .. } => 2,
            Self::Sql { error, .. } if is_mistake(error) => 2,
            Self::Model(ScorerError::Load(_) | ScorerError::Device(_) | ScorerError::MaxLength { .. }) => 2,
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }

    pub(crate) fn sql(context: impl Into<String>, error: DataFusionError) -> Self {
        Self::Sql { context: context.into(), error: Box::new(error) }
    }

    pub(crate) fn source(pipeline: &std::path::Path, error: SourceError) -> Self {
        let pipeline = pipeline.display().to_string();
        match error {
            SourceError::Query(error) => Self::sql(format!("{pipeline}: the source query"), error),
            SourceError::Columns(problem) | SourceError::Ids(problem) => Self::Source { pipeline, problem },
        }
    }
}

/// Whether the SQL is wrong, rather than its execution.
fn is_mistake(error: &DataFusionError) -> bool {
    matches!(
        error.find_root(),
        DataFusionError::SQL(..) | DataFusionError::Plan(_) | DataFusionError::SchemaError(..) | DataFusionError::NotImplemented(_)
    ) || matches!(error.find_root(), DataFusionError::External(e) if matches!(e.downcast_ref(), Some(ScorerError::Load(_) | ScorerError::MaxLength { .. })))
}

/// What DataFusion says, without the layers it is wrapped in.
fn sql_message(error: &DataFusionError) -> String {
    let root = error.find_root();
    match root {
        DataFusionError::External(e) => e.to_string(),
        _ => root.message().split("\n\nbacktrace:").next().unwrap_or_default().to_owned(),
    }
}
