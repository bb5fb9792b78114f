//! Sinks of a run: a Delta table, a folder with one subfolder per run, or a single Parquet file.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use couplet_storage::files::FileVersion;
use couplet_storage::lock::{self, LockError};
use couplet_storage::objects::{Objects, StoreFolder};
use couplet_storage::place::Place;
use couplet_tables::delta;
use couplet_tables::sink::runs::{self, Manifest, RunFolder};
use couplet_tables::sink::{
    self, DeltaSink, Mode, Origin, SinkError, Unpublished, fitted, rejected_version, with_table_types,
};
use couplet_tables::tables;
use couplet_tables::types::{Columns, FileSchema};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use object_store::ObjectMeta;

use super::checked::Once;
use super::commit_gate::gated;
use super::run_lock::RunLock;
use super::writers::{confirmed, to_file, to_object, to_runs};
use super::{quarantine, readable_place};
use crate::config::{Errors, Pipeline, Scoring, SinkFormat, SinkMode};
use crate::error::Error;

/// The rows that a sink receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SinkKind {
    /// The table that the pipeline names.
    Predictions,
    /// The table of rows that could not be scored, next to the predictions.
    Rejected,
}

/// An opened destination for the rows of a run. Nothing is visible to readers before it is published.
pub(super) struct Sink {
    kind: SinkKind,
    output: String,
    to: To,
}

enum To {
    File { path: PathBuf, over: FileVersion, schema: SchemaRef, metadata: Vec<(&'static str, String)> },
    Object { objects: Objects, over: Option<ObjectMeta>, schema: SchemaRef, metadata: Vec<(&'static str, String)> },
    Runs(Box<RunFolder>),
    Delta { sink: DeltaSink, metadata: Vec<(&'static str, String)> },
}

/// The result of an attempt to publish that did not fail.
pub(super) enum Attempt {
    /// The rows are visible.
    Done(Done),
    /// Another writer committed first. The sink must be reopened.
    Conflict(Error),
}

/// A published output.
pub(super) struct Done {
    pub(super) output: String,
    pub(super) bytes: u64,
    pub(super) version: Option<u64>,
}

/// Returns the place of rejected rows: next to the predictions, with `_rejected` appended to the name.
pub(super) fn rejected_place(place: &Place) -> Place {
    let name = place.name();
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
        _ => (&*name, String::new()),
    };
    place.with_name(&format!("{stem}_rejected{extension}"))
}

/// Returns the sinks of a run in commit order.
pub(super) fn kinds(scoring: &Scoring) -> Vec<SinkKind> {
    match scoring.score.errors {
        Errors::Column => vec![SinkKind::Predictions],
        // Rejected rows are committed first: if they were not published, they would be lost.
        Errors::Quarantine => vec![SinkKind::Rejected, SinkKind::Predictions],
    }
}

/// Checks for every sink that rows of `schema` can be written to its place. Creates nothing.
///
/// # Errors
/// A place that cannot be read, or has a table of another kind or of other columns.
pub(super) async fn look(pipeline: &Pipeline, scoring: &Scoring, schema: &SchemaRef) -> Result<(), Error> {
    for kind in kinds(scoring) {
        let objects = Objects::open(&kind.place(scoring))?;
        let origin = Origin { run: "plan".into(), pipeline: pipeline.name.clone(), store: String::new(), key: None };
        kind.look(pipeline, scoring, schema, origin, &objects).await?;
    }
    Ok(())
}

impl SinkKind {
    pub(super) fn place(self, scoring: &Scoring) -> Place {
        let place = &scoring.sink.location.place;
        match self {
            Self::Predictions => place.clone(),
            Self::Rejected => rejected_place(place),
        }
    }

    /// Checks the existing table, if there is one, and rejects a layout that conflicts with the sink format.
    async fn look(
        self,
        pipeline: &Pipeline,
        scoring: &Scoring,
        schema: &SchemaRef,
        origin: Origin,
        objects: &Objects,
    ) -> Result<ExistingSink, Error> {
        let settings = &scoring.sink;
        let refused = |problem: &str| {
            let place = readable_place(&objects.place);
            Err(Error::Usage(format!("{}: sink.uri: {place} {problem}", pipeline.path.display())))
        };
        match settings.format {
            SinkFormat::Delta => {
                let mode = match (settings.mode, self) {
                    (SinkMode::Overwrite, _) => Mode::Overwrite,
                    // Rejected rows are produced again by each run; leftovers of a run that failed halfway are
                    // replaced.
                    (SinkMode::Append, Self::Predictions) => Mode::Append,
                    (SinkMode::Append | SinkMode::Merge, _) => Mode::Merge,
                };
                let (partition_by, id) = (&settings.partition_by, &scoring.source.id);
                let sink = DeltaSink::open(objects, schema, mode, partition_by, id, origin).await?;
                if sink.is_new() && runs::has_run_folders(&objects.lock_place()).await? {
                    return refused(
                        "has folders of runs, so it cannot be a Delta table; remove format = \"delta\", or name \
                         another folder",
                    );
                }
                Ok(ExistingSink::Delta(Box::new(sink)))
            }
            SinkFormat::Parquet => {
                if let Some(problem) = sink::parquet_problem(schema) {
                    return refused(&format!("cannot hold the rows: {problem}"));
                }
                if !settings.is_one_file() && objects.folder(delta::LOG).has_children().await? {
                    return refused(
                        "is a Delta table, so it cannot have folders of runs; add format = \"delta\", or name another \
                         folder",
                    );
                }
                let appends = !settings.is_one_file() && settings.mode == SinkMode::Append && self == Self::Predictions;
                if !appends {
                    return Ok(ExistingSink::Parquet(Arc::clone(schema)));
                }
                // All runs are read as one table.
                let mut runs = tables::columns_of_runs(objects).await.map_err(|e| Error::Tables(vec![e]))?;
                let fits = Columns::of(&runs).and_then(|there| {
                    let schema = with_table_types(schema, &there.schema);
                    runs.push(FileSchema { place: "this run".into(), schema: Arc::clone(&schema), footer: None });
                    Columns::of(&runs).map(|_| schema)
                });
                match fits {
                    Ok(schema) => Ok(ExistingSink::Parquet(schema)),
                    Err(problem) => refused(&format!(
                        "has runs that do not form one table with these rows: {problem}; CAST it in the source query, \
                         or name another folder"
                    )),
                }
            }
        }
    }
}

/// The result of checking a place.
enum ExistingSink {
    /// A Delta table, or a place for a new one.
    Delta(Box<DeltaSink>),
    /// Parquet with these columns.
    Parquet(SchemaRef),
}

impl Sink {
    /// Checks that rows of `schema` can be written to the place, and records its current version. Publishing later
    /// replaces only that version.
    ///
    /// # Errors
    /// A place that cannot be read or written, or has a table of another kind or of other columns.
    pub(super) async fn open(
        kind: SinkKind,
        pipeline: &Pipeline,
        scoring: &Scoring,
        schema: &SchemaRef,
        metadata: &[(&'static str, String)],
        origin: Origin,
        store: &StoreFolder,
    ) -> Result<Self, Error> {
        let settings = &scoring.sink;
        let mut place = kind.place(scoring);
        let output = readable_place(&place);
        let mut metadata = metadata.to_vec();
        if settings.is_one_file() && scoring.score.errors == Errors::Quarantine {
            metadata.push((delta::RUN, origin.run.clone()));
            if kind == SinkKind::Rejected {
                place = quarantine::pending_place(&place, &origin.run);
            }
        }
        let objects = Objects::open(&place)?.with_upload_notes(store);
        try_to_write(&objects, settings.is_one_file(), store).await?;
        let main = Objects::open(&settings.location.place)?;
        let to = match (kind.look(pipeline, scoring, schema, origin.clone(), &objects).await?, &place) {
            (ExistingSink::Delta(sink), _) if kind == SinkKind::Rejected => {
                let published = rejected_version(&main, &pipeline.name).await?;
                To::Delta { sink: sink.without_unpublished(published).await?, metadata }
            }
            (ExistingSink::Delta(sink), _) => To::Delta { sink: *sink, metadata },
            (ExistingSink::Parquet(schema), _) if !settings.is_one_file() => {
                let mut keep = settings.keep;
                if kind == SinkKind::Rejected {
                    quarantine::remove_unpublished(&main, &objects, &origin).await?;
                    // Rejected rows are removed together with those of the sink.
                    keep = None;
                }
                let model = metadata.iter().find(|(key, _)| *key == "couplet.model").map(|(_, value)| value.clone());
                let run = runs::Run { origin, model: model.unwrap_or_default(), keep };
                To::Runs(Box::new(RunFolder::begin(&objects.lock_place(), &schema, &metadata, run).await?))
            }
            (ExistingSink::Parquet(schema), Place::Local(path)) => {
                let over = FileVersion::of(path).map_err(|e| SinkError { path: path.clone(), problem: (&e).into() })?;
                To::File { path: path.clone(), over, schema, metadata }
            }
            (ExistingSink::Parquet(schema), Place::Remote(_) | Place::Hub(_)) => {
                let over = objects.head().await?;
                To::Object { objects, over, schema, metadata }
            }
        };
        Ok(Self { kind, output, to })
    }

    pub(super) fn kind(&self) -> SinkKind {
        self.kind
    }

    /// Returns true if rows were already appended under the run's key.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub(super) async fn has_key(&self) -> Result<bool, Error> {
        match &self.to {
            To::Delta { sink, .. } => Ok(sink.has_key().await?),
            To::Runs(folder) => Ok(folder.has_key()),
            To::File { .. } | To::Object { .. } => Ok(false),
        }
    }

    /// The table version that the run saw; `None` for sinks without versions.
    pub(super) fn version(&self) -> Option<u64> {
        match &self.to {
            To::Delta { sink, .. } => sink.version(),
            To::Runs(_) | To::File { .. } | To::Object { .. } => None,
        }
    }

    /// Fails if a run of the same pipeline and store has published since the version `before`. This run has lost its
    /// lock, and its rows may be older.
    ///
    /// # Errors
    /// [`Error::Superseded`] if there is such a run.
    pub(super) async fn follows(&self, before: Option<u64>) -> Result<(), Error> {
        let To::Delta { sink, .. } = &self.to else { return Ok(()) };
        match sink.published_since(before).await? {
            Some(other) => Err(Error::Superseded { output: self.output.clone(), by: other }),
            None => Ok(()),
        }
    }

    /// The columns of the table after this run, for sinks that cast rows to its types.
    pub(super) fn table_schema(&self) -> Option<&SchemaRef> {
        match &self.to {
            To::Delta { sink, .. } => Some(sink.schema()),
            To::Runs(folder) => Some(folder.schema()),
            To::File { .. } | To::Object { .. } => None,
        }
    }

    /// Returns true if the rows are merged into those of a table.
    pub(super) fn merges(&self) -> bool {
        matches!(&self.to, To::Delta { sink, .. } if sink.merges())
    }

    /// Records the version of the rejected-rows table that belongs to these rows, for sinks with versions.
    pub(super) fn with_rejected(self, version: Option<u64>) -> Self {
        match self.to {
            To::Delta { sink, metadata } => {
                Self { to: To::Delta { sink: sink.with_rejected(version), metadata }, ..self }
            }
            to => Self { to, ..self },
        }
    }

    /// Abandons the sink before anything was written to it.
    pub(super) async fn give_up(self) {
        if let To::Runs(folder) = self.to {
            folder.abort().await;
        }
    }

    /// Writes the rows and makes them visible atomically. An error of the stream leaves the place unchanged.
    ///
    /// # Errors
    /// Errors of the stream; a place that cannot be written.
    pub(super) async fn publish(
        self,
        rows: SendableRecordBatchStream,
        context: &SessionContext,
        lock: &RunLock,
    ) -> Result<Attempt, Error> {
        let Self { output, to, .. } = self;
        let done = match to {
            To::File { path, over, schema, metadata } => {
                let bytes = to_file(rows, &path, &over, &schema, &metadata, lock).await?;
                Done { output, bytes, version: None }
            }
            To::Object { objects, over, schema, metadata } => {
                let bytes = to_object(rows, &objects, over, &schema, &metadata, lock).await?;
                Done { output, bytes, version: None }
            }
            To::Runs(folder) => {
                let rows = fitted(rows, folder.schema());
                done_by(&output, &to_runs(rows, *folder, &output, lock).await?)
            }
            To::Delta { sink, metadata } => {
                let (rows, gate) = gated(sink.fitted(rows));
                let table = StreamingTable::try_new(rows.schema(), vec![Arc::new(Once::new(rows))]);
                let table: Arc<dyn TableProvider> = Arc::new(table.map_err(|e| Error::sql(&output, &e, None))?);
                // delta-rs commits as soon as the stream ends, so the lock is confirmed before end-of-stream is passed
                // on.
                let mut publishing = pin!(sink.publish(context, table, sink::properties(&metadata)));
                let committed = tokio::select! {
                    biased;
                    committed = &mut publishing => committed,
                    passed = gate.pass_if(confirmed(lock)) => {
                        let committed = publishing.await;
                        passed?;
                        committed
                    }
                };
                match committed {
                    Ok(committed) => Done { output, bytes: committed.bytes, version: Some(committed.version) },
                    Err(Unpublished { not_durable: Some(problem), .. }) => {
                        return Err(SinkError { path: output.into(), problem: problem.into() }.into());
                    }
                    Err(Unpublished { source, known, conflict, .. }) => {
                        let error = Error::Publish { output, source: Box::new(source), known };
                        return if conflict { Ok(Attempt::Conflict(error)) } else { Err(error) };
                    }
                }
            }
        };
        Ok(Attempt::Done(done))
    }
}

fn done_by(output: &str, manifest: &Manifest) -> Done {
    let output = format!("{}/{}", output.trim_end_matches('/'), manifest.folder());
    Done { output, bytes: manifest.bytes(), version: None }
}

/// Checks before scoring that a place in a bucket is writable, and that the server honours conditional puts. Leaves
/// nothing there. Local places are checked by [`outputs`](super::outputs).
async fn try_to_write(objects: &Objects, is_one_file: bool, store: &StoreFolder) -> Result<(), Error> {
    // The store's place has been probed already, but write access may be limited to a part of the bucket, so the sink's
    // place is probed too. Only one run per store is active at a time: if it is killed, the next one finds its probe
    // object and deletes it.
    let probe = format!(".couplet-probe-{}", store.id());
    let lock::Place::Objects { store: bucket, root, name, explain } = objects.lock_place() else { return Ok(()) };
    let root = if is_one_file { root.parent().unwrap_or_default() } else { root };
    let place = lock::Place::Objects { store: bucket, root, name, explain };
    lock::probe_and_delete(&place, &probe).await.map_err(|error| match error {
        LockError::Store { problem, .. } => SinkError { path: objects.to_string().into(), problem }.into(),
        error => Error::from(error),
    })
}
