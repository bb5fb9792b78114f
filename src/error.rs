//! Everything that ends a command, with the exit code that a shell sees.

use std::path::PathBuf;

use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use thiserror::Error;

use crate::cluster::ClusterError;
use crate::config::PREDICTIONS;
use crate::config::{ConfigErrors, Pipeline, Query};
use crate::delta::{DeltaError, Trouble};
use crate::files::NOT_DURABLE;
use crate::lock::LockError;
use crate::objects::{ObjectsError, cause_in, explain_unplaced, without_answers};
use crate::scorer::ScorerError;
use crate::sink::SinkError;
use crate::sink::runs::RunsError;
use crate::source::SourceError;
use crate::sql_error;
use crate::tables::TableError;
use crate::tables::broken_in;
use crate::tables::diagnose::Broken;
use crate::train::training_loop::JobError;

/// What there is of a table that could not be written.
const AS_BEFORE: &str = "the table is as it was before";
const NOT_KNOWN: &str = "whether this run's rows are in the table is not known; run the same command again, which makes sure that they are there once";

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
    #[error("{origin}: {message}")]
    Sql {
        /// Whose SQL it is.
        origin: String,
        /// What is wrong with it, for people.
        message: String,
        /// Whether the query is wrong, rather than its execution.
        mistake: bool,
    },
    /// A place in a bucket cannot be read or written.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// The source does not suit the pipeline.
    #[error("{pipeline}: {problem}")]
    Source {
        /// The pipeline file.
        pipeline: String,
        /// What does not suit.
        problem: String,
    },
    /// A file turned out to be broken while it was read.
    #[error("{broken}{}", kept.map_or_else(String::new, |kept| format!("; {kept}")))]
    BrokenFile {
        /// The file and the place.
        broken: Broken,
        /// What there is of the output, where there may be some.
        kept: Option<&'static str>,
    },
    /// A file was replaced while a query read it, each time that it was tried.
    #[error("{file} was replaced while it was read; {kept}. Run the same command again")]
    Replaced {
        /// The file.
        file: String,
        /// What there is of the output.
        kept: &'static str,
    },
    /// A model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ScorerError),
    /// A cluster cannot do what it was asked for.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A model cannot be trained.
    #[error("{context}: {error}")]
    Training {
        /// The pipeline file and the section.
        context: String,
        /// Why not.
        error: Box<JobError>,
    },
    /// There is no model, as `promote_if` refused the first one that was trained.
    #[error(
        "there is no model {} yet: the one that was trained was refused, as {reason}. Lower promote_if or train better \
         and run again, or use the refused one as it is: it is in {}",
        model.display(),
        candidate.display()
    )]
    NotPromoted {
        /// The model's folder.
        model: PathBuf,
        /// Where the refused model is.
        candidate: PathBuf,
        /// The condition, with what was measured.
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
    #[error(
        "internal error: {read} rows were read and {written} written; nothing was published. Run it with --fresh to score all rows anew, and please report this"
    )]
    RowsLost {
        /// Rows of the source by the first count.
        read: u64,
        /// Rows that came through.
        written: u64,
    },
    /// A file of the source changed while it was read.
    #[error(
        "{pipeline}: the source changed while it was read: {change}; nothing was written. Run the same command again"
    )]
    SourceChanged {
        /// The pipeline file.
        pipeline: String,
        /// Which file, and how.
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
    #[error("cannot write {output}: {}; {}", without_answers(&**source), if *known { AS_BEFORE } else { NOT_KNOWN })]
    Publish {
        /// The table.
        output: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether it is known that they were not.
        known: bool,
    },
    /// Another run of the pipeline and its store has published since this one began.
    #[error(
        "run {by} of this pipeline has published to {output} since this run began, which published nothing. Run the same \
         command again"
    )]
    Superseded {
        /// The table.
        output: String,
        /// The other run.
        by: String,
    },
    /// A run as it is planned would fail.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: "))]
    Foreseen(Vec<Error>),
    /// Ctrl-C, or a request to terminate.
    #[error("interrupted {after}; {kept}")]
    Interrupted {
        /// How far it had come.
        after: String,
        /// What is left of the work.
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
            // A file that is broken is so again.
            Self::Config(_)
            | Self::Usage(_)
            | Self::Source { .. }
            | Self::Sql { mistake: true, .. }
            | Self::BrokenFile { .. }
            | Self::Cluster(ClusterError::Unavailable { .. }) => 2,
            Self::Tables(errors) if errors.iter().any(|error| !error.passes) => 2,
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
            // A table that is damaged is so again.
            Self::Delta(error) if !matches!(error.trouble, Trouble::Unreachable | Trouble::Other) => 2,
            Self::Foreseen(errors) => errors.first().map_or(1, Self::exit_code),
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }

    /// What to do about a refusal of the operating system, wherever below it came from.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let message = self.to_string();
        let is = |number: i32| message.contains(&format!("(os error {number})"));
        // It says itself what is there now.
        if !cfg!(unix) || message.contains(NOT_DURABLE) {
            None
        } else if is(17) || is(20) {
            Some("a part of that path is a file where a folder would have to be: name another place")
        } else if is(28) || is(122) {
            Some(
                "the disk is full there, or the quota used up: make room and run the same command again, or name another \
                 place for it (sink.uri, score.store, run.spill). What was there before is as it was",
            )
        } else if is(13) || is(1) {
            Some("this user may not read or write that place: see its owner and permissions, and those of its folders")
        } else if is(30) {
            Some("that disk can only be read: name a place on another one")
        } else if is(24) {
            Some("too many files are open at once: raise the limit (`ulimit -n`)")
        } else {
            None
        }
    }

    pub(crate) fn sql(origin: impl Into<String>, error: &DataFusionError, context: Option<&SessionContext>) -> Self {
        if let Some(broken) = broken_in(error) {
            return Self::BrokenFile { broken: broken.clone(), kept: None };
        }
        if let Some(error) = cause_in(error).and_then(explain_unplaced) {
            return Self::Objects(error);
        }
        let message = sql_error::explain(error, context, None);
        Self::Sql { origin: origin.into(), message, mistake: sql_error::is_mistake(error) }
    }

    /// The same where the text of the query is at hand, which tells more.
    pub(crate) fn sql_in(origin: String, sql: &str, error: &DataFusionError, context: &SessionContext) -> Self {
        match Self::sql(origin, error, Some(context)) {
            Self::Sql { origin, mistake, .. } => {
                Self::Sql { origin, message: sql_error::explain(error, Some(context), Some(sql)), mistake }
            }
            other => other,
        }
    }

    /// Rows that cannot be published; the place is as it was.
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

/// Whether a server refuses access, behind an error.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    cause_in(error).and_then(explain_unplaced).is_some_and(|explained| explained.trouble.is_refusal())
}

/// Whether a table that is not there has a name of what the pipeline writes.
fn is_own_output(pipeline: &Pipeline, name: &str) -> bool {
    name.eq_ignore_ascii_case(&pipeline.name) || name.eq_ignore_ascii_case(PREDICTIONS)
}

fn reads_own_output(query: &str, name: &str) -> String {
    format!(
        "{query}: `{name}` is what this pipeline writes, which its source cannot read; name another table, or score \
         earlier results in a pipeline of its own that has them under [tables]"
    )
}

/// The file that has a query, where it is not the pipeline's own: places in the query are places in it.
pub(crate) fn in_file(query: &Query) -> String {
    match query {
        Query::Sql(_) => String::new(),
        Query::File(file) => format!(" in {file}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects;

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
            let problem = || explain_unplaced(&error).unwrap().into();
            let place = || "s3://bucket/key".to_owned();
            let lock = LockError::Store { place: place(), problem: problem() };
            let sink = SinkError { path: place().into(), problem: problem() };
            assert_eq!((Error::from(lock).exit_code(), Error::from(sink).exit_code()), (code, code));
            let mut published = Error::publish(place(), error);
            assert_eq!(published.exit_code(), code);
            // Whether it was done is told by the next run.
            if let Error::Publish { known, .. } = &mut published {
                *known = false;
            }
            assert_eq!(published.exit_code(), 1);
        }
        let delta = |trouble| Error::Delta(DeltaError { url: String::new(), problem: String::new(), trouble });
        assert_eq!((delta(Trouble::Refused).exit_code(), delta(Trouble::Unreachable).exit_code()), (2, 1));
        assert!(objects::Trouble::Refused.is_refusal() && !objects::Trouble::Missing.is_refusal());
    }
}
