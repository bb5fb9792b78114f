//! The errors that end a command, with their exit codes.

use std::path::PathBuf;

use couplet_cluster::ClusterError;
use couplet_encoder::scorer::ScorerError;
use couplet_storage::lock::LockError;
use couplet_storage::objects::{ObjectsError, Trouble, cause_in, explain_without_place, without_responses};
use couplet_storage::trouble::{Explained, system_error};
use couplet_tables::delta::DeltaError;
use couplet_tables::sink::SinkError;
use couplet_tables::sink::runs::RunsError;
use couplet_tables::source::SourceError;
use couplet_tables::sql_error;
use couplet_tables::store::StoreError;
use couplet_tables::tables::PREDICTIONS;
use couplet_tables::tables::diagnose::Broken;
use couplet_tables::tables::{TableError, broken_in};
use couplet_train::training_loop::JobError;
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use thiserror::Error;

use crate::config::{ConfigErrors, Pipeline, Query};

/// The states of a table after a failed write, for messages.
const AS_BEFORE: &str = "the table is unchanged";
const NOT_KNOWN: &str =
    "it is unknown whether the table has this run's rows; run the same command again: it publishes them once";

/// An error that ends a command.
#[derive(Debug, Error)]
pub enum Error {
    /// The pipeline file has mistakes.
    #[error(transparent)]
    Config(Box<ConfigErrors>),
    /// The command line or a file that it names is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file or folder that the command line or a pipeline names cannot be used.
    #[error(transparent)]
    Unusable(Explained),
    /// Tables cannot be read.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tables(Vec<TableError>),
    /// SQL cannot be planned or executed.
    #[error("{origin}: {message}")]
    Sql {
        /// The origin of the SQL.
        origin: String,
        /// The problem, explained for the user.
        message: String,
        /// True if the query is wrong, false if its execution failed.
        mistake: bool,
        /// The kind of the failure.
        #[source]
        trouble: Trouble,
    },
    /// A place in a bucket cannot be read or written.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// The source is invalid for the pipeline.
    #[error("{pipeline}: {problem}")]
    Source {
        /// The pipeline file.
        pipeline: String,
        /// The problem.
        problem: String,
    },
    /// A file is broken, as found while reading it.
    #[error("{broken}{}", kept.map_or_else(String::new, |kept| format!("; {kept}")))]
    BrokenFile {
        /// The file and the position.
        broken: Broken,
        /// The state of the output, if there may be some.
        kept: Option<&'static str>,
    },
    /// A file was replaced while a query read it, on every attempt.
    #[error("{file} was replaced while it was read; {kept}. Run the same command again")]
    Replaced {
        /// The file.
        file: String,
        /// The state of the output.
        kept: &'static str,
    },
    /// A model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ScorerError),
    /// A cluster failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A model cannot be trained.
    #[error("{context}: {error}")]
    Training {
        /// The pipeline file and the section.
        context: String,
        /// The cause.
        #[source]
        error: Box<JobError>,
    },
    /// There is no model, because `promote_if` refused the first trained one.
    #[error(
        "there is no model {} yet: promote_if rejected the trained one, as {reason}. Lower promote_if or improve the \
         training and run again, or use the rejected model in {}",
        model.display(),
        candidate.display()
    )]
    NotPromoted {
        /// The model's folder.
        model: PathBuf,
        /// The folder of the refused model.
        candidate: PathBuf,
        /// The condition and the measured value.
        reason: String,
    },
    /// The output cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// More rows were rejected than the pipeline allows.
    #[error(
        "{rejected} of {rows} rows were rejected ({kinds}), more than score.max_errors = {max_errors} allows; nothing was written. Look at the rows, or raise max_errors"
    )]
    TooManyErrors {
        /// The number of rows with an error.
        rejected: u64,
        /// The number of rows read.
        rows: u64,
        /// The kinds of errors with their counts.
        kinds: String,
        /// The largest share allowed.
        max_errors: f64,
    },
    /// The numbers of rows read and written differ, which is a bug.
    #[error(
        "internal error: {read} rows were read and {written} written; nothing was published. Run it with --fresh to score all rows again, and please report this"
    )]
    RowsLost {
        /// The number of rows of the source when they were first counted.
        read: u64,
        /// The number of rows written.
        written: u64,
    },
    /// A file of the source changed while it was read.
    #[error(
        "{pipeline}: the source changed while it was read: {change}; nothing was written. Run the same command again"
    )]
    SourceChanged {
        /// The pipeline file.
        pipeline: String,
        /// The file and its change.
        change: String,
    },
    /// Another run holds the lock, or took it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A Delta table cannot be read or written.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// A folder of runs cannot be read or written.
    #[error(transparent)]
    Runs(#[from] RunsError),
    /// The rows could not be published.
    #[error("cannot write {output}: {}; {}", without_responses(&**source), if *known { AS_BEFORE } else { NOT_KNOWN })]
    Publish {
        /// The table.
        output: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// True if it is known that they were not published.
        known: bool,
    },
    /// Another run with the same pipeline and store has published since this one began.
    #[error(
        "run {by} of this pipeline has published to {output} since this run began, so this run published nothing. Run \
         the same command again"
    )]
    Superseded {
        /// The table.
        output: String,
        /// The other run.
        by: String,
    },
    /// The planned run would fail.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: "))]
    Foreseen(Vec<Error>),
    /// The command was interrupted by Ctrl-C or a request to terminate.
    #[error("interrupted {after}; {kept}")]
    Interrupted {
        /// The progress at the interruption.
        after: String,
        /// The work that is kept.
        kept: String,
    },
    /// An operation of the operating system failed.
    #[error("{context}: {error}")]
    Io {
        /// The operation.
        context: String,
        /// The error.
        #[source]
        error: std::io::Error,
    },
}

impl Error {
    /// Returns the exit code: 1 for a failure, 2 for wrong usage or configuration, 130 for an interruption.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            // A broken file stays broken.
            Self::Config(_)
            | Self::Usage(_)
            | Self::Unusable(_)
            | Self::Source { .. }
            | Self::Sql { mistake: true, .. }
            | Self::BrokenFile { .. }
            | Self::Cluster(ClusterError::Unavailable { .. }) => 2,
            Self::Tables(errors) if errors.iter().any(|error| !error.passes()) => 2,
            Self::Objects(error) if error.trouble.is_mistake() => 2,
            Self::Model(error) if error.is_mistake() => 2,
            Self::Training { error, .. } if error.is_mistake() => 2,
            Self::Lock(error) if error.is_mistake() => 2,
            Self::Sink(SinkError { problem, .. }) | Self::Runs(RunsError { problem, .. })
                if problem.trouble.is_mistake() =>
            {
                2
            }
            Self::Publish { source, known: true, .. } if is_refused(&**source) => 2,
            // A damaged table stays damaged.
            Self::Delta(error) if error.trouble.is_mistake() => 2,
            Self::Foreseen(errors) => errors.first().map_or(1, Self::exit_code),
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }

    /// Returns a hint for fixing an error of the operating system, wherever it occurred.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let number = match self {
            Self::Foreseen(errors) => return errors.iter().find_map(Self::hint),
            Self::Tables(errors) => errors.iter().find_map(|error| system_error(error)),
            error => system_error(error),
        };
        match number.filter(|_| cfg!(unix))? {
            17 | 20 => Some("a part of that path is a file, not a folder: use another path"),
            28 | 122 => Some(
                "the disk is full, or the quota is used up: free some space and run the same command again, or set \
                 another location (sink.uri, score.store, run.spill). Existing data is unchanged",
            ),
            1 | 13 => Some("check the owner and permissions of that path and its parent folders"),
            30 => Some("that disk is read-only: use a path on another disk"),
            24 => Some("too many files are open at once: raise the limit (`ulimit -n`)"),
            _ => None,
        }
    }

    pub(crate) fn sql(origin: impl Into<String>, error: &DataFusionError, context: Option<&SessionContext>) -> Self {
        if let Some(broken) = broken_in(error) {
            return Self::BrokenFile { broken: broken.clone(), kept: None };
        }
        if let Some(error) = cause_in(error).and_then(explain_without_place) {
            return Self::Objects(error);
        }
        let message = sql_error::explain(error, context, None);
        Self::Sql { origin: origin.into(), message, mistake: sql_error::is_mistake(error), trouble: Trouble::of(error) }
    }

    /// Explains an error of a query with the help of its text.
    pub(crate) fn sql_in(origin: String, sql: &str, error: &DataFusionError, context: &SessionContext) -> Self {
        match Self::sql(origin, error, Some(context)) {
            Self::Sql { origin, mistake, trouble, .. } => {
                Self::Sql { origin, message: sql_error::explain(error, Some(context), Some(sql)), mistake, trouble }
            }
            other => other,
        }
    }

    /// Creates the error for rows that could not be published and a table that is unchanged.
    pub(crate) fn publish(output: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Publish { output: output.into(), source: Box::new(source), known: true }
    }

    pub(crate) fn source(pipeline: &Pipeline, query: &Query, error: SourceError, context: &SessionContext) -> Self {
        let file = pipeline.path.display().to_string();
        match error {
            SourceError::Query(error) => {
                let message = error.find_root().message();
                let own = sql_error::missing_table(&message).filter(|name| is_own_output(pipeline, name));
                let query = format!("the source query{}", in_file(query));
                match own {
                    Some(name) => Self::Source { pipeline: file, problem: reads_own_output(&query, name) },
                    None => Self::sql(format!("{file}: {query}"), &error, Some(context)),
                }
            }
            SourceError::Columns(problem) | SourceError::Ids(problem) => Self::Source { pipeline: file, problem },
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Objects(error) => error.into(),
            StoreError::Delta(error) => error.into(),
            StoreError::Lock(error) => error.into(),
            StoreError::Io { place, error } => Self::Io { context: place, error },
            StoreError::Sql { origin, error } => Self::sql(origin, &error, None),
            StoreError::Unsuitable { .. } => Self::Usage(error.to_string()),
        }
    }
}

/// Returns true if the cause of an error is that a server refuses access.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    cause_in(error).and_then(explain_without_place).is_some_and(|explained| explained.trouble.is_refusal())
}

/// Returns true if the name of a missing table is that of the pipeline's own output.
fn is_own_output(pipeline: &Pipeline, name: &str) -> bool {
    name.eq_ignore_ascii_case(&pipeline.name) || name.eq_ignore_ascii_case(PREDICTIONS)
}

fn reads_own_output(query: &str, name: &str) -> String {
    format!(
        "{query}: `{name}` is the output of this pipeline, which its source cannot read; name another table, or score \
         earlier results in a separate pipeline that has them under [tables]"
    )
}

/// Returns " in FILE" for a query in a file of its own, as positions in the query are positions in that file.
pub(crate) fn in_file(query: &Query) -> String {
    match query {
        Query::Sql(_) => String::new(),
        Query::File(file) => format!(" in {file}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_exit_with_2_and_transient_failures_with_1() {
        let refused = object_store::Error::PermissionDenied {
            path: "key".into(),
            source: "Error performing PUT http://host/bucket/key in 1ms - status code: 403 Forbidden: ".into(),
        };
        let busy = object_store::Error::Generic {
            store: "S3",
            source: "Error performing PUT http://host/bucket/key in 1ms - status code: 503 Slow Down: ".into(),
        };
        for (error, code) in [(refused, 2), (busy, 1)] {
            let problem = || explain_without_place(&error).unwrap().into();
            let place = || "s3://bucket/key".to_owned();
            let lock = LockError::Store { place: place(), problem: problem() };
            let sink = SinkError { path: place().into(), problem: problem() };
            assert_eq!((Error::from(lock).exit_code(), Error::from(sink).exit_code()), (code, code));
            let mut published = Error::publish(place(), error);
            assert_eq!(published.exit_code(), code);
            // If the outcome is unknown, the next run finds it out.
            if let Error::Publish { known, .. } = &mut published {
                *known = false;
            }
            assert_eq!(published.exit_code(), 1);
        }
        let delta = |trouble| Error::Delta(DeltaError { url: String::new(), problem: String::new(), trouble });
        assert_eq!((delta(Trouble::Refused).exit_code(), delta(Trouble::Unreachable).exit_code()), (2, 1));
        assert!(Trouble::Refused.is_refusal() && !Trouble::Missing.is_refusal());
    }
}
