//! Score cache: immutable Parquet files keyed by a hash of the texts, in one folder per model.
//!
//! ```text
//! <store>/scores/model=CLASS/ID-ROWS-DIGEST.parquet
//! ```
//!
//! ID is that of the store. DIGEST is a digest of the model and of all bytes of the file, so a single flipped bit is
//! detected before the file is used; its texts are scored again. The files in the folder are the table, and a file is
//! complete once it has its name. A kill between writing a file and removing those that it replaces leaves duplicate
//! scores, which are identical.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use couplet_encoder::scorer::{Prediction, Rejection, Scorer};
use couplet_storage::objects::{Objects, ObjectsError, StoreFolder, Trouble};
use couplet_storage::place::Place;
use datafusion::common::DataFusionError;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStoreExt};

use super::StoreError;
use super::score_file::{digest_of, merged, to_parquet, without_errors};
use crate::delta;
use crate::predict::{prediction_fields, predictions_to_array};

/// The folder of all scores in a store.
pub(super) const FOLDER: &str = "scores";

/// The number of small files of a model from which they are compacted.
const FILES_TO_COMPACT: usize = 128;

/// Files below this size in bytes are small, and are merged up to it.
const SMALL: u64 = 32 << 20;

/// Files verified concurrently.
const CONCURRENT_CHECKS: usize = 8;

/// The key, the fields of a prediction, and the number of tokens read.
pub(super) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let predicted = prediction_fields();
    let fields = [Arc::new(Field::new("key", DataType::Binary, false))]
        .into_iter()
        .chain(predicted.iter().cloned())
        .chain([Arc::new(Field::new("tokens", DataType::Int32, true))]);
    Arc::new(delta::for_delta(&Schema::new(fields.collect::<Vec<_>>())))
});

/// Identifies scores that are interchangeable: the model's fingerprint, the maximum length, and the numeric precision.
#[must_use]
pub fn model_class(scorer: &Scorer) -> String {
    let fingerprint = &scorer.model().fingerprint.as_str()[..32];
    format!("{fingerprint}-{}-{}", scorer.max_length(), scorer.precision())
}

/// A file of scores, described by its name.
#[derive(Debug, Clone)]
pub(super) struct ScoreFile {
    pub(super) path: Path,
    pub(super) rows: u64,
    bytes: u64,
    digest: String,
}

/// Lists a model's score files in name order.
pub(super) async fn files_of(folder: &StoreFolder) -> Result<Vec<ScoreFile>, ObjectsError> {
    let mut files: Vec<_> = folder
        .files()
        .await?
        .into_iter()
        .filter_map(|file| {
            let (rows, digest) = file.name.strip_suffix(".parquet")?.split_once('-')?;
            Some(ScoreFile { path: file.path, rows: rows.parse().ok()?, bytes: file.bytes, digest: digest.to_owned() })
        })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Returns the folder of a model's scores.
pub(super) fn folder_of(store: &StoreFolder, model: &str) -> StoreFolder {
    store.folder(FOLDER).folder(&format!("model={model}"))
}

/// Writes a file of scores.
pub(super) async fn write(
    folder: &StoreFolder,
    model: &str,
    file: Vec<u8>,
    rows: u64,
) -> Result<ScoreFile, ObjectsError> {
    let digest = digest_of(model, &file);
    let (path, bytes) = (folder.path(&format!("{rows}-{digest}.parquet")), file.len() as u64);
    // The name depends on the content, so writing it twice is idempotent.
    let written = folder.objects.store.put(&path, file.into()).await;
    written.map_err(|e| folder.objects.error_at(&path, &e))?;
    Ok(ScoreFile { path, rows, bytes, digest })
}

/// The cached scores of one model.
#[derive(Debug)]
pub struct ScoreStore {
    folder: StoreFolder,
    model: String,
    /// Files that passed verification.
    files: Vec<ScoreFile>,
    /// The number of scores in damaged files.
    damaged: u64,
    waiting: Vec<RecordBatch>,
}

impl ScoreStore {
    /// Opens the scores of a model in a pipeline's store, and removes damaged files.
    ///
    /// # Errors
    /// A place that cannot be read or written.
    pub async fn open(store: &StoreFolder, model: String) -> Result<Self, StoreError> {
        super::adopt::adopt(store).await?;
        let (scores, damaged) = Self::checked(store, model).await?;
        for file in damaged {
            scores.folder.objects.remove(&file.path).await?;
        }
        Ok(scores)
    }

    /// Opens the scores of a model without creating or removing anything.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn open_read_only(store: &StoreFolder, model: String) -> Result<Self, StoreError> {
        Ok(Self::checked(store, model).await?.0)
    }

    async fn checked(store: &StoreFolder, model: String) -> Result<(Self, Vec<ScoreFile>), StoreError> {
        let folder = folder_of(store, &model);
        let files = files_of(&folder).await?;
        let (objects, class) = (&folder.objects, model.as_str());
        let checks = files.into_iter().map(|file| async move {
            let mut found = digest(objects, &file, class).await?;
            // Rereads the file, in case it was only damaged in transit.
            if found.as_ref().is_some_and(|found| *found != file.digest) {
                found = digest(objects, &file, class).await?;
            }
            Ok::<_, ObjectsError>((file, found))
        });
        let mut checks = futures::stream::iter(checks).buffered(CONCURRENT_CHECKS);
        let (mut intact, mut damaged) = (Vec::new(), Vec::new());
        while let Some((file, found)) = checks.try_next().await? {
            match found {
                Some(found) if found == file.digest => intact.push(file),
                Some(_) => {
                    tracing::warn!(
                        "{} is damaged: its checksum is wrong. Its scores are dropped, and their texts scored anew: {}",
                        objects.place_of(&file.path),
                        file.rows
                    );
                    damaged.push(file);
                }
                // Another process has just compacted it.
                None => {}
            }
        }
        drop(checks);
        let rows = damaged.iter().map(|file| file.rows).sum();
        Ok((Self { folder, model, files: intact, damaged: rows, waiting: Vec::new() }, damaged))
    }

    /// Returns the number of scores of this model.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Returns the number of scores of this model that were in damaged files.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Returns the reason why reading the scores failed: the damaged file if there is one, otherwise `error`.
    pub async fn blame<E: From<ObjectsError>>(&self, error: E) -> E {
        match self.check().await {
            Err(ObjectsError { place, problem, trouble: Trouble::Missing }) => {
                ObjectsError { place, problem, trouble: Trouble::Other }.into()
            }
            Err(error) => error.into(),
            Ok(()) => error,
        }
    }

    /// Verifies the files against their digests again.
    ///
    /// # Errors
    /// A damaged, missing or unreadable file.
    pub fn check(&self) -> impl Future<Output = Result<(), ObjectsError>> + Send + use<> {
        let (objects, files, model) = (self.folder.objects.clone(), self.files.clone(), self.model.clone());
        async move {
            for file in files {
                let problem = match digest(&objects, &file, &model).await? {
                    Some(found) if found == file.digest => continue,
                    Some(_) => "was damaged while the run used it",
                    None => "was removed while the run used it",
                };
                let problem = format!("{problem}; run the same command again, which scores its texts anew");
                return Err(ObjectsError::new(&objects.place_of(&file.path), Trouble::Other, problem));
            }
            Ok(())
        }
    }

    /// Returns the scores as a table with [`prediction_fields`], `key` and `tokens`.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub fn scores(&self, context: &SessionContext) -> Result<DataFrame, StoreError> {
        let objects = &self.folder.objects;
        let table = || {
            if self.files.is_empty() {
                return context.read_batch(RecordBatch::new_empty(Arc::clone(&SCHEMA)));
            }
            let urls = self.files.iter().map(|file| {
                let url = match objects.place_of(&file.path) {
                    Place::Remote(remote) => {
                        let store = Arc::clone(&objects.store);
                        context.runtime_env().register_object_store(&remote.session_url(), store);
                        remote.session_url()
                    }
                    place => Objects::open(&place).map_err(|e| DataFusionError::External(Box::new(e)))?.url,
                };
                ListingTableUrl::try_new(url, None)
            });
            let options = ListingOptions::new(Arc::new(ParquetFormat::default()));
            let options = options.with_file_extension("");
            let config = ListingTableConfig::new_with_multi_paths(urls.collect::<Result<_, _>>()?);
            let config = config.with_listing_options(options).with_schema(Arc::clone(&SCHEMA));
            context.read_table(Arc::new(ListingTable::try_new(config)?))
        };
        table().map_err(|e| self.failed(e))
    }

    /// Deletes cached errors, so that their rows are retried.
    ///
    /// # Errors
    /// A place that cannot be read or written.
    pub async fn forget_errors(&mut self) -> Result<(), StoreError> {
        for file in std::mem::take(&mut self.files) {
            let bytes = self.read(&file).await?;
            match self.blocking(move || without_errors(bytes)).await? {
                None => self.files.push(file),
                Some((kept, rows)) => self.replace(vec![file], kept, rows).await?,
            }
        }
        Ok(())
    }

    /// Deletes all scores of this model.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub async fn forget(&mut self) -> Result<(), StoreError> {
        for file in std::mem::take(&mut self.files) {
            self.folder.objects.remove(&file.path).await?;
        }
        Ok(())
    }

    /// Buffers the outcomes of a window in memory until the next [`ScoreStore::commit`]. `keys` are those of its rows.
    ///
    /// # Errors
    /// `keys` and `outcomes` of different lengths.
    pub fn remember(
        &mut self,
        keys: &ArrayRef,
        outcomes: &[Result<Prediction, Rejection>],
        scorer: &Scorer,
    ) -> Result<(), StoreError> {
        let predictions: StructArray = predictions_to_array(outcomes, &scorer.model().config);
        let (_, predicted, _) = predictions.into_parts();
        let tokens = |outcome: &Result<Prediction, Rejection>| i32::try_from(outcome.as_ref().ok()?.tokens).ok();
        let tokens: ArrayRef = Arc::new(outcomes.iter().map(tokens).collect::<Int32Array>());
        let columns = [Arc::clone(keys)].into_iter().chain(predicted).chain([tokens]);
        let columns =
            columns.zip(SCHEMA.fields()).map(|(column, field)| arrow::compute::cast(&column, field.data_type()));
        let batch = columns.collect::<Result<Vec<_>, _>>();
        let batch = batch.and_then(|columns| RecordBatch::try_new(Arc::clone(&SCHEMA), columns));
        self.waiting.push(batch.map_err(|e| self.failed(e.into()))?);
        Ok(())
    }

    /// Returns the number of rows buffered in memory. They are lost if the process is killed.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(RecordBatch::num_rows).sum()
    }

    /// Returns the memory of the buffered rows, in bytes.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(RecordBatch::get_array_memory_size).sum()
    }

    /// Commits the buffered scores atomically.
    ///
    /// # Errors
    /// A place that cannot be written. A later run scores those texts again.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        let batches = std::mem::take(&mut self.waiting);
        if batches.is_empty() {
            return Ok(());
        }
        let rows = batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
        let file = self.blocking(move || to_parquet(&batches)).await?;
        self.replace(Vec::new(), file, rows).await
    }

    /// Merges small files into larger ones if there are many. A failure is only logged; a later run retries.
    pub async fn compact(&mut self) {
        let small = self.files.iter().filter(|file| file.bytes < SMALL).count();
        if small < FILES_TO_COMPACT {
            return;
        }
        if let Err(error) = self.try_compact().await {
            tracing::warn!("the score store could not be compacted: {error}");
        }
    }

    async fn try_compact(&mut self) -> Result<(), StoreError> {
        let (small, large) = std::mem::take(&mut self.files).into_iter().partition(|file| file.bytes < SMALL);
        self.files = large;
        let small: Vec<ScoreFile> = small;
        let (mut group, mut bytes) = (Vec::new(), 0);
        let mut left = small.into_iter().peekable();
        while let Some(file) = left.next() {
            bytes += file.bytes;
            group.push(file);
            if left.peek().is_some_and(|next| bytes + next.bytes <= SMALL) {
                continue;
            }
            let files = std::mem::take(&mut group);
            bytes = 0;
            if files.len() == 1 {
                self.files.extend(files);
                continue;
            }
            let mut read = Vec::with_capacity(files.len());
            for file in &files {
                read.push(self.read(file).await?);
            }
            let rows = files.iter().map(|file| file.rows).sum();
            let merged = self.blocking(move || merged(read)).await?;
            self.replace(files, merged, rows).await?;
        }
        Ok(())
    }

    /// Writes a file, then removes the files whose scores it contains.
    async fn replace(&mut self, old: Vec<ScoreFile>, file: Vec<u8>, rows: u64) -> Result<(), StoreError> {
        let written = if rows == 0 { None } else { Some(write(&self.folder, &self.model, file, rows).await?) };
        for file in old.iter().filter(|old| written.as_ref().is_none_or(|written| written.path != old.path)) {
            self.folder.objects.remove(&file.path).await?;
        }
        // An identical file may have been written before.
        let known: HashSet<&Path> = self.files.iter().map(|file| &file.path).collect();
        let written = written.filter(|file| !known.contains(&file.path));
        self.files.extend(written);
        Ok(())
    }

    /// Reads a file into memory and verifies it.
    async fn read(&self, file: &ScoreFile) -> Result<bytes::Bytes, StoreError> {
        let objects = &self.folder.objects;
        let read = async { objects.store.get(&file.path).await?.bytes().await };
        let bytes = read.await.map_err(|e| objects.error_at(&file.path, &e))?;
        if digest_of(&self.model, &bytes) == file.digest {
            return Ok(bytes);
        }
        let problem = "was damaged while the run used it; run the same command again, which scores its texts anew";
        Err(ObjectsError::new(&objects.place_of(&file.path), Trouble::Other, problem).into())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, DataFusionError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let done =
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(DataFusionError::External(Box::new(e))));
        done.map_err(|e| self.failed(e))
    }

    fn failed(&self, error: DataFusionError) -> StoreError {
        StoreError::Sql { origin: format!("the score store {}", self.folder.objects), error: Box::new(error) }
    }
}

/// Computes the digest of a file; `None` if it does not exist.
async fn digest(objects: &Objects, file: &ScoreFile, model: &str) -> Result<Option<String>, ObjectsError> {
    let failed = |e: object_store::Error| objects.error_at(&file.path, &e);
    let found = match objects.store.get(&file.path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        found => found.map_err(failed)?,
    };
    let mut hasher = super::score_file::hasher(model);
    match found.payload {
        GetResultPayload::File(file, path) => {
            let read = tokio::task::spawn_blocking(move || hasher.update_reader(file).map(|hasher| hasher.finalize()));
            let hashed = read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
            let place = Place::Local(path);
            let hashed = hashed.map_err(|e| ObjectsError::new(&place, Trouble::of(&e), e.to_string()))?;
            Ok(Some(super::score_file::digits(&hashed)))
        }
        GetResultPayload::Stream(mut bytes) => {
            while let Some(bytes) = bytes.try_next().await.map_err(failed)? {
                hasher.update(&bytes);
            }
            Ok(Some(super::score_file::digits(&hasher.finalize())))
        }
    }
}
