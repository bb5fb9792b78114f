//! Parquet sink with one folder per run, on the local disk or on an object store.
//!
//! ```text
//! <sink>/run=000041-<run id>/part-00000.parquet … _SUCCESS
//! <sink>/run=000042-<run id>/part-00000.parquet … _SUCCESS   ◀── the newest complete run
//! <sink>/run=000043-<run id>/part-00000.parquet              ◀── in progress or dead: invisible without _SUCCESS
//! ```
//!
//! `_SUCCESS` is a [`Manifest`] that lists the run's files. Readers follow it rather than a directory listing.
//!
//! - **Local disk:** the folder is written under a hidden name, synced, and renamed into place atomically.
//! - **Object store:** the files are uploaded first, and the manifest is then created with a conditional put. If the
//!   process is killed, the parts of its unfinished uploads are not objects, and no listing shows them; the next run
//!   aborts them, see [`abort_noted_uploads`](couplet_storage::objects::abort_noted_uploads).
//!
//! Runs are ordered by sequence number, not by a clock. Among the runs of a pipeline and store, and among runs that
//! append rows of the same key, only the last one to begin can complete. A run begins in three steps:
//!
//! 1. It announces itself with a `_STARTED` file in its folder.
//! 2. It fences the announced runs that are not complete. On the local disk it removes their hidden folders; on an
//!    object store it creates a `_SUCCESS` object that marks them as removed.
//! 3. It reads the complete runs, to check that none has its key and that its sequence number is greater than theirs.
//!
//! Of two runs that begin at the same time, at least one sees the other in step 2. So a run that was suspended and has
//! lost the lock can neither publish over a newer run nor append its rows a second time.

mod clean;
mod manifest;
mod part;
mod read;
mod upload;

use std::fmt::Display;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use couplet_storage::files::{self, AtomicFolder};
use couplet_storage::lock::{Explained, Place, put_if};
use couplet_storage::trouble::causes;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode};
use parquet::errors::ParquetError;
use thiserror::Error;

use super::{Origin, writer_options};

pub use clean::{remove, remove_older};
pub use manifest::{Manifest, RunColumn, RunFile};
use manifest::{RUN_FOLDER, STARTED, SUCCESS, Started, Success, folder_name, part_name, to_json};
pub use part::Part;
pub use read::has_run_folders;
pub use read::{all, latest, readable};
pub use upload::PutCondition;

/// A sink that cannot be read or written.
#[derive(Debug, Clone, Error)]
#[error("cannot {action} {place}: {problem}")]
pub struct RunsError {
    /// `read`, `write` or `remove`.
    action: &'static str,
    /// The sink, or an object in it.
    pub place: String,
    /// The problem, and how to fix it.
    #[source]
    pub problem: Explained,
}

impl RunsError {
    fn write(place: &impl Display, problem: impl Into<Explained>) -> Self {
        Self { action: "write", place: place.to_string(), problem: problem.into() }
    }

    fn read(place: &impl Display, problem: impl Into<Explained>) -> Self {
        Self { action: "read", place: place.to_string(), problem: problem.into() }
    }

    fn remove(place: &impl Display, problem: impl Into<Explained>) -> Self {
        Self { action: "remove", place: place.to_string(), problem: problem.into() }
    }
}

/// A run that writes to a sink.
#[derive(Debug, Clone)]
pub struct Run {
    /// The run's identity.
    pub origin: Origin,
    /// The fingerprint of the model.
    pub model: String,
    /// The number of complete runs of the pipeline to keep, including this one; `None` keeps all.
    pub keep: Option<usize>,
}

/// Size limits of a file; the next file begins when one is reached.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Approximate size in bytes.
    pub bytes: u64,
    /// Approximate number of rows.
    pub rows: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 512 << 20, rows: 50_000_000 }
    }
}

/// A run's folder before it is published. Dropping it aborts the run. On an object store this continues in the
/// background, so call [`RunFolder::abort`] if the program is about to exit.
pub struct RunFolder {
    place: Place,
    run: Run,
    sequence: u64,
    schema: SchemaRef,
    metadata: Vec<(String, String)>,
    limits: Limits,
    target: Target,
    part: Option<Part>,
    files: Vec<RunFile>,
    has_key: bool,
}

enum Target {
    Folder(AtomicFolder),
    Objects { store: Arc<dyn ObjectStore>, folder: Path },
}

impl RunFolder {
    /// Creates a run's folder in a sink. Fences and removes incomplete runs of the same pipeline. `metadata` is written
    /// to the footer of each file.
    ///
    /// # Errors
    /// A sink that cannot be read or written.
    pub async fn begin(
        place: &Place,
        schema: &SchemaRef,
        metadata: &[(&str, String)],
        run: Run,
    ) -> Result<Self, RunsError> {
        let id = &run.origin.run;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return Err(RunsError::write(place, format!("{id:?} cannot be the id of a run")));
        }
        let (target, sequence) = loop {
            let sequence = read::last_sequence(place).await?.map_or(1, |last| last + 1);
            let target = Target::announce(place, sequence, &run.origin).await?;
            match &target {
                Target::Folder(folder) => {
                    clean::fence_folders(folder.path(), &run.origin).map_err(|e| RunsError::write(place, &e))?;
                }
                Target::Objects { folder, .. } => clean::fence_objects(place, folder, &run.origin).await?,
            }
            // Another run began at the same time and completed before it could be fenced.
            if read::last_sequence(place).await?.is_none_or(|last| last < sequence) {
                break (target, sequence);
            }
            target.withdraw(place).await?;
        };
        let key = run.origin.key.as_ref();
        let has_key = key.is_some()
            && all(place).await?.iter().any(|other| other.pipeline == run.origin.pipeline && other.key.as_ref() == key);
        Ok(Self {
            place: place.clone(),
            run,
            sequence,
            schema: Arc::clone(schema),
            metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
            limits: Limits::default(),
            target,
            part: None,
            files: Vec::new(),
            has_key,
        })
    }

    /// Replaces the default file size limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Returns true if rows were already appended under this run's key. If false, no other run can append under it
    /// before this one.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.has_key
    }

    /// Returns the schema of the rows.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns the number of rows written so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum::<u64>() + self.part.as_ref().map_or(0, Part::rows)
    }

    /// Appends a record batch.
    ///
    /// # Errors
    /// A full disk; a server that rejects the write. The run must be aborted then.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<(), RunsError> {
        let part = if let Some(part) = &mut self.part {
            part
        } else {
            let part = self.begin_part()?;
            self.part.insert(part)
        };
        part.write(batch).await.map_err(|e| RunsError::write(&self.place, root_cause(&self.place, &e)))?;
        if part.bytes() >= self.limits.bytes || part.rows() >= self.limits.rows {
            self.end_part().await?;
        }
        Ok(())
    }

    fn begin_part(&self) -> Result<Part, RunsError> {
        let name = part_name(self.files.len());
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let options = writer_options(&self.schema, &metadata);
        match &self.target {
            Target::Folder(folder) => Part::in_folder(folder.path(), name, &self.schema, options),
            Target::Objects { store, folder } => {
                Part::on_store(Arc::clone(store), folder, name, PutCondition::Always, &self.schema, options)
            }
        }
        .map_err(|e| RunsError::write(&self.place, root_cause(&self.place, &e)))
    }

    async fn end_part(&mut self) -> Result<(), RunsError> {
        if let Some(part) = self.part.take() {
            let file = part.finish().await.map_err(|e| RunsError::write(&self.place, root_cause(&self.place, &e)))?;
            self.files.push(file);
        }
        Ok(())
    }

    /// Closes the last file and moves it into place. The run is not visible yet. [`RunFolder::commit`] has little left
    /// to do after this, so this is the moment to check the rows and the lock.
    ///
    /// # Errors
    /// A full disk; a server that rejects the write. The run must be aborted then.
    pub async fn finish(&mut self) -> Result<(), RunsError> {
        if self.part.is_none() && self.files.is_empty() {
            // A run without rows has a file too, for its schema.
            self.part = Some(self.begin_part()?);
        }
        self.end_part().await
    }

    /// Makes the run visible atomically, then removes older runs beyond the number to keep.
    ///
    /// # Errors
    /// A run that could not be made visible. If the response of an object store was lost, the run may be visible after
    /// all: the error says so, and the files stay.
    pub async fn commit(mut self) -> Result<Manifest, RunsError> {
        if let Err(error) = self.finish().await {
            self.abort().await;
            return Err(error);
        }
        let files = std::mem::take(&mut self.files);
        let manifest = Manifest::new(&self.run, self.sequence, files, &self.schema);
        let json = to_json(&manifest);
        match self.target {
            Target::Folder(folder) => {
                let written = files::write(&folder.path().join(SUCCESS), json);
                let written = written.and_then(|()| folder.publish());
                written.map_err(|e| RunsError::write(&self.place, without_folder(&e)))?;
            }
            Target::Objects { store, folder } => {
                let path = folder.join(SUCCESS);
                let created = put_if(store.as_ref(), &path, json, PutMode::Create).await;
                if let Err(error) = created {
                    confirm(store.as_ref(), &path, &manifest, &self.place.explain(&error))
                        .await
                        .map_err(|problem| RunsError::write(&self.place, problem))?;
                }
            }
        }
        if let Some(keep) = self.run.keep
            && let Err(error) = remove_older(&self.place, &self.run.origin.pipeline, keep).await
        {
            tracing::warn!("older runs could not be removed; the next run tries again: {error}");
        }
        Ok(manifest)
    }

    /// Aborts the run: cancels unfinished uploads, and removes its files as far as possible.
    pub async fn abort(self) {
        if let Some(part) = self.part {
            part.abort().await;
        }
        if let Target::Objects { store, folder } = self.target
            && let Err(error) = clean::withdraw(store.as_ref(), &folder).await
        {
            tracing::warn!("{folder} could not be removed; the next run removes it: {}", self.place.explain(&error));
        }
    }
}

/// The reason why a fenced run cannot complete.
const FENCED: &str = "another run of this pipeline has begun since, and has removed what this one wrote";

/// Explains an error of a file in a run's hidden folder.
fn without_folder(error: &std::io::Error) -> Explained {
    if error.kind() == std::io::ErrorKind::NotFound { FENCED.into() } else { error.into() }
}

impl Target {
    /// Creates the folder of a run with its `_STARTED` file.
    async fn announce(place: &Place, sequence: u64, origin: &Origin) -> Result<Self, RunsError> {
        let (name, started) = (folder_name(sequence, &origin.run), to_json(&Started::new(origin)));
        match place {
            Place::Folder(path) => {
                let folder = AtomicFolder::create(&path.join(name), &RUN_FOLDER);
                let folder = folder.and_then(|folder| {
                    files::write(&folder.path().join(STARTED), started)?;
                    Ok(folder)
                });
                Ok(Self::Folder(folder.map_err(|e| RunsError::write(place, &e))?))
            }
            Place::Objects { store, root, .. } => {
                let (store, folder) = (Arc::clone(store), root.clone().join(name));
                let put = store.put(&folder.clone().join(STARTED), started.into()).await;
                put.map_err(|e| RunsError::write(place, place.explain(&e)))?;
                Ok(Self::Objects { store, folder })
            }
        }
    }

    /// Removes the folder of a run that has written nothing.
    async fn withdraw(self, place: &Place) -> Result<(), RunsError> {
        match self {
            // Removed on drop.
            Self::Folder(_) => Ok(()),
            Self::Objects { store, folder } => {
                let deleted = store.delete(&folder.join(STARTED)).await;
                deleted.map_err(|e| RunsError::remove(place, place.explain(&e)))
            }
        }
    }
}

/// Checks whether the manifest was created although the response was unclear.
async fn confirm(
    store: &dyn ObjectStore,
    path: &Path,
    manifest: &Manifest,
    problem: &Explained,
) -> Result<(), Explained> {
    let found = match store.get(path).await {
        Ok(found) => found.bytes().await,
        Err(e) => Err(e),
    };
    match found.map(|json| Success::from_json(&json)) {
        Ok(Ok(Success::Complete(found))) if found.run_id == manifest.run_id => Ok(()),
        Ok(Ok(Success::Removed)) => Err(FENCED.into()),
        Ok(_) => Err(format!("{path} is there already, and is not of this run").into()),
        Err(_) => Err(format!(
            "{problem}; whether this run's output was published is not known: `couplet runs` or the next run will tell"
        )
        .into()),
    }
}

/// Explains the root cause of an error of the Parquet writer.
fn root_cause(place: &Place, error: &ParquetError) -> Explained {
    let inner = causes(error).find(|cause| !matches!(cause.downcast_ref(), Some(ParquetError::External(_))));
    let cause = inner.unwrap_or(error);
    if let Some(error) = cause.downcast_ref::<StoreError>() {
        return place.explain(error);
    }
    match cause.downcast_ref::<std::io::Error>() {
        Some(error) => without_folder(error),
        None => cause.to_string().into(),
    }
}
