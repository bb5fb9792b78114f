//! `couplet query`: runs SQL over tables and models, and streams the result in the requested format.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use couplet_cluster as cluster;
use couplet_storage::objects::Objects;
use couplet_storage::place::Place;
use couplet_tables::delta;
use couplet_tables::from_first;
use couplet_tables::sink::runs;
use couplet_tables::sql_depth;
use couplet_tables::tables;
use couplet_tables::tables::snapshot::{ATTEMPTS, Snapshot};
use couplet_tables::tables::{Location, PREDICTIONS, Table, TableFormat};
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use futures::StreamExt;

use crate::config::{Errors, Pipeline, Sink, SinkFormat, SinkMode};
use crate::error::Error;
use crate::parameters::Parameters;
use crate::run::quarantine;

mod output;
mod place;

use output::ResultWriter;
pub use output::{Format, format_of};
use place::Placed;

/// The SQL name of the rows that a pipeline quarantined.
pub const REJECTED: &str = "rejected";

/// Returns the tables of a pipeline: its inputs, its sink under the pipeline's name and as [`PREDICTIONS`], and its
/// quarantine as [`REJECTED`].
///
/// # Errors
/// A server that cannot tell whether the sink exists.
pub async fn tables_of(pipeline: &Pipeline) -> Result<Vec<Table>, Error> {
    let mut tables = pipeline.tables.clone();
    let Some(scoring) = &pipeline.scoring else { return Ok(tables) };
    let sink = &scoring.sink;
    // Before the first run there is no sink. A query that needs it fails with a message.
    let predictions = published_format(sink, &sink.location.place).await?;
    let mut written = Vec::new();
    written.extend(predictions.map(|format| {
        let names = vec![pipeline.name.as_str(), PREDICTIONS];
        (sink.location.clone(), format, names)
    }));
    if matches!(scoring.score.errors, Errors::Quarantine) {
        let rejected = quarantine::published(&pipeline.name, sink).await?;
        written.extend(rejected.map(|(place, format)| {
            let written = place.to_string();
            (Location { written, place }, format, vec![REJECTED])
        }));
    }
    for (location, format, names) in written {
        for name in names {
            if !tables.iter().any(|table| table.name.eq_ignore_ascii_case(name)) {
                let (name, location) = (name.to_owned(), location.clone());
                tables.push(Table { name, location, format: format.clone(), partitions: Vec::new() });
            }
        }
    }
    Ok(tables)
}

/// Returns the format to read a table that a pipeline writes; none if the table does not exist.
async fn published_format(sink: &Sink, place: &Place) -> Result<Option<TableFormat>, Error> {
    let format = match sink.format {
        SinkFormat::Delta => TableFormat::Delta { version: None },
        SinkFormat::Parquet if sink.is_one_file() => TableFormat::Parquet,
        SinkFormat::Parquet => TableFormat::Runs { all: sink.mode == SinkMode::Append, published_in: None },
    };
    let objects = Objects::open(place)?;
    let is_there = match format {
        TableFormat::Delta { .. } => delta::open(&objects, None).await?.is_some(),
        // A run that was killed may have left files that are not published.
        TableFormat::Runs { .. } => runs::latest(&objects.lock_place()).await?.is_some(),
        _ => objects.exists().await?,
    };
    Ok(is_there.then_some(format))
}

/// The outcome of the last result of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// The number of rows written; none if no statement has a result.
    pub rows: Option<u64>,
    /// True if the result has more rows.
    pub cut: bool,
}

/// A SQL script with its session, parameters and output.
pub(crate) struct Script {
    pub(crate) context: SessionContext,
    /// The tables of the session. They are opened again if their files are replaced while they are read.
    pub(crate) tables: Vec<Table>,
    pub(crate) sql: String,
    /// The origin of the SQL, for messages.
    pub(crate) origin: String,
    /// Parameter values.
    pub(crate) parameters: Parameters,
    pub(crate) format: Format,
    /// The output file; stdout if none.
    pub(crate) output: Option<PathBuf>,
    /// The maximum number of rows per result on stdout.
    pub(crate) most_rows: Option<usize>,
}

/// Checks the syntax of SQL without executing it.
///
/// # Errors
/// The parser's error.
pub(crate) fn check_syntax(context: &SessionContext, sql: &str, origin: &str) -> Result<(), Error> {
    parse(context, sql, origin).map(drop)
}

fn parse(context: &SessionContext, sql: &str, origin: &str) -> Result<VecDeque<Statement>, Error> {
    if let Some(problem) = sql_depth::problem(sql) {
        return Err(Error::Usage(format!("{origin}: {problem}")));
    }
    let parsed = DFParserBuilder::new(sql).build().and_then(|mut parser| parser.parse_statements());
    parsed.map_err(|e| Error::sql_in(origin.to_owned(), sql, &e, context))
}

/// Executes the statements of a script in order and writes the result of each.
///
/// It stops if the future is dropped, or if a cluster has had no executor for it for too long. The script runs in a
/// separate task: some plans, such as joins without a condition, do not yield for minutes, and the caller must be able
/// to cancel meanwhile.
///
/// # Errors
/// SQL that cannot be planned or executed, an invalid parameter value, an output that cannot be written.
pub(crate) async fn execute(script: Script) -> Result<Shown, Error> {
    let context = script.context.clone();
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move { script.execute().await });
    tokio::select! {
        biased;
        done = task.join_next() => done
            .expect("the set has one task")
            .unwrap_or_else(|e| Err(Error::Io { context: "executing SQL".into(), error: io::Error::other(e) })),
        starved = cluster::starved(&context) => {
            task.abort_all();
            cluster::cancel(&context).await;
            Err(starved.into())
        }
    }
}

/// The reason why a statement has no result or only a part of it.
struct Failed {
    error: Error,
    /// True if some of its rows have been written to stdout.
    has_shown: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, has_shown: false }
    }
}

impl Script {
    async fn execute(&self) -> Result<Shown, Error> {
        let Self { context, sql, origin, .. } = self;
        let statements = parse(context, sql, origin)?;
        if statements.is_empty() {
            return Err(Error::Usage(format!("{origin}: there is no SQL")));
        }
        if self.output.is_some() && statements.len() > 1 {
            return Err(Error::Usage(format!(
                "{origin}: {} statements cannot share one output file",
                statements.len()
            )));
        }
        // Views, in-memory tables and settings last until the session ends.
        let mut shown = Shown::default();
        for (index, mut statement) in statements.into_iter().enumerate() {
            from_first::select_all(&mut statement);
            let placed = Placed { origin, sql, statement: index };
            let snapshot = Snapshot::of(context);
            // The first statement reads the versions with which its tables were opened.
            if let Some(snapshot) = snapshot.as_ref().filter(|_| index > 0) {
                snapshot.renew();
            }
            shown = self.retried(statement, placed, snapshot.as_deref(), shown).await?;
        }
        Ok(shown)
    }

    /// Executes a statement, and retries it if a file is replaced or removed while it is read.
    async fn retried(
        &self,
        statement: Statement,
        placed: Placed<'_>,
        snapshot: Option<&Snapshot>,
        before: Shown,
    ) -> Result<Shown, Error> {
        let mut attempts = 1;
        loop {
            let failed = match self.statement(statement.clone(), placed, snapshot).await {
                Ok(shown) => return Ok(shown.unwrap_or(before)),
                Err(failed) if matches!(failed.error, Error::Usage(_)) => return Err(failed.error),
                Err(failed) => failed,
            };
            // A file that is replaced during schema inference can look like a mistake in the SQL.
            let Some(snapshot) = snapshot.filter(|snapshot| snapshot.explains_failure()) else {
                return Err(failed.error);
            };
            if failed.has_shown || attempts == ATTEMPTS {
                let kept = if self.output.is_some() { "no output was written" } else { "the output is not complete" };
                return Err(snapshot.replaced().map_or(failed.error, |file| Error::Replaced { file, kept }));
            }
            attempts += 1;
            tracing::debug!("attempt {attempts}, as a file was replaced: {}", failed.error);
            snapshot.renew();
            for table in &self.tables {
                tables::reopen(&self.context, table).await.map_err(|e| Error::Tables(vec![e]))?;
            }
        }
    }

    /// Executes a statement and returns the outcome of its result, if it has one.
    async fn statement(
        &self,
        statement: Statement,
        placed: Placed<'_>,
        snapshot: Option<&Snapshot>,
    ) -> Result<Option<Shown>, Failed> {
        let Self { context, sql, origin, .. } = self;
        let failed = |e: DataFusionError| Error::sql_in(placed.of_error(&e), sql, &e, context);
        let plan = context.state().statement_to_plan(statement).await.map_err(failed)?;
        SQLOptions::new().with_allow_dml(false).verify_plan(&plan).map_err(|_| {
            Error::Usage(format!(
                "{placed}: a query only reads; to write its result, use -o FILE instead of COPY or INSERT"
            ))
        })?;
        let plan = self.parameters.bind(plan, origin)?;
        if let Some(path) = &self.output {
            let read = tables::place_reading(&plan, path).map_err(failed)?;
            refuse_own_source(path, read.as_ref())?;
        }
        let frame = context.execute_logical_plan(plan).await.map_err(failed)?;
        let stream = frame.execute_stream().await.map_err(failed)?;
        // CREATE VIEW and SET have been executed by now and have no columns to show.
        if stream.schema().fields().is_empty() {
            return Ok(None);
        }
        self.write(stream, failed, snapshot).await.map(Some)
    }

    async fn write(
        &self,
        mut stream: SendableRecordBatchStream,
        failed: impl Fn(DataFusionError) -> Error,
        snapshot: Option<&Snapshot>,
    ) -> Result<Shown, Failed> {
        let shown = Arc::new(AtomicBool::new(false));
        let has_shown = || shown.load(Ordering::Relaxed);
        let mut writer = ResultWriter::create(self.format, self.output.as_deref(), stream.schema(), &shown)?;
        // The row limit applies to stdout only.
        let most_rows = self.most_rows.filter(|_| self.output.is_none());
        let (mut rows, mut cut) = (0, false);
        while let Some(batch) = stream.next().await {
            let mut batch = batch.map_err(|e| Failed { error: failed(e), has_shown: has_shown() })?;
            if let Some(left) = most_rows.map(|most| most - rows).filter(|left| *left < batch.num_rows()) {
                batch = batch.slice(0, left);
                cut = true;
            }
            rows += batch.num_rows();
            // The task can be cancelled here, so that no rows are written after the caller has given up.
            tokio::task::yield_now().await;
            writer.write(&batch)?;
            if cut {
                break;
            }
        }
        if let Some(file) = snapshot.and_then(Snapshot::replaced) {
            let error = Error::Replaced { file, kept: "the output is not complete" };
            return Err(Failed { error, has_shown: has_shown() });
        }
        tokio::task::yield_now().await;
        writer.finish()?;
        Ok(Shown { rows: Some(rows as u64), cut })
    }
}

/// Rejects an output file that is, or would become, part of a table that the query reads.
fn refuse_own_source(output: &Path, read: Option<&Place>) -> Result<(), Error> {
    let Some(read) = read else { return Ok(()) };
    let output = output.display();
    Err(Error::Usage(format!("-o {output}: the query reads {read}, which includes that file; name another file")))
}
