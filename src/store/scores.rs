//! Scores by the key of their texts: Parquet files that are never changed, in a folder for each model.
//!
//! ```text
//! <store>/scores/model=CLASS/ID-ROWS-DIGEST.parquet
//! ```
//!
//! ID is the store's, and DIGEST is of the model and of all bytes of the file. So a file in which one bit is not as it was
//! written is noticed before anything of it is used; its texts are scored anew. The files of the folder are the table:
//! a file is complete when it has its name. A kill between writing a file and removing those that it replaces leaves
//! scores twice, which are the same.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error as StoreError, GetResultPayload, ObjectStoreExt};

use super::score_file::{digest_of, merged, to_parquet, without_errors};
use crate::delta;
use crate::error::Error;
use crate::objects::{Objects, ObjectsError, StoreFolder, Trouble};
use crate::place::Place;
use crate::predict::{prediction_fields, predictions_to_array};
use crate::scorer::{Prediction, Rejection, Scorer};

/// The folder of all scores in a store.
pub(super) const FOLDER: &str = "scores";

/// Small files of a model above which they are made into fewer ones.
const FILES_TO_COMPACT: usize = 128;

/// A file is small below this size, and files are put together up to it, in bytes.
const SMALL: u64 = 32 << 20;

/// Files that are checked at once.
const CHECKED_AT_ONCE: usize = 8;

/// The key, the fields of a prediction, and the tokens that were read.
pub(super) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let predicted = prediction_fields();
    let fields = [Arc::new(Field::new("key", DataType::Binary, false))]
        .into_iter()
        .chain(predicted.iter().cloned())
        .chain([Arc::new(Field::new("tokens", DataType::Int32, true))]);
    Arc::new(delta::for_delta(&Schema::new(fields.collect::<Vec<_>>())))
});

/// What makes two scores of one text the same: the model, where it cuts, and in which numbers it multiplies.
#[must_use]
pub fn model_class(scorer: &Scorer) -> String {
    let fingerprint = &scorer.model().fingerprint.as_str()[..32];
    format!("{fingerprint}-{}-{}", scorer.max_length(), scorer.precision())
}

/// A file of scores, by its name.
#[derive(Debug, Clone)]
pub(super) struct ScoreFile {
    pub(super) path: Path,
    pub(super) rows: u64,
    bytes: u64,
    digest: String,
}

/// The files of scores of a model, in the order of their names.
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

/// The folder of a model's scores.
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
    // The name says what is in it, so that writing it twice is the same as once.
    let written = folder.objects.store.put(&path, file.into()).await;
    written.map_err(|e| folder.objects.error_at(&path, &e))?;
    Ok(ScoreFile { path, rows, bytes, digest })
}

/// The scores of one model.
#[derive(Debug)]
pub struct ScoreStore {
    folder: StoreFolder,
    model: String,
    /// Those that are as they were written.
    files: Vec<ScoreFile>,
    /// Scores in files that were not.
    damaged: u64,
    waiting: Vec<RecordBatch>,
}

impl ScoreStore {
    /// Opens the scores of a model in a pipeline's store, and removes files that are damaged.
    ///
    /// # Errors
    /// A place that cannot be read or written.
    pub async fn open(store: &StoreFolder, model: String) -> Result<Self, Error> {
        super::adopt::adopt(store).await?;
        let (scores, damaged) = Self::checked(store, model).await?;
        for file in damaged {
            scores.folder.objects.remove(&file.path).await?;
        }
        Ok(scores)
    }

    /// Looks at the scores of a model without making or removing anything.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn look(store: &StoreFolder, model: String) -> Result<Self, Error> {
        Ok(Self::checked(store, model).await?.0)
    }

    async fn checked(store: &StoreFolder, model: String) -> Result<(Self, Vec<ScoreFile>), Error> {
        let folder = folder_of(store, &model);
        let files = files_of(&folder).await?;
        let (objects, class) = (&folder.objects, model.as_str());
        let checks = files.into_iter().map(|file| async move {
            let mut found = digest(objects, &file, class).await?;
            // What was wrong only on its way is right the second time.
            if found.as_ref().is_some_and(|found| *found != file.digest) {
                found = digest(objects, &file, class).await?;
            }
            Ok::<_, ObjectsError>((file, found))
        });
        let mut checks = futures::stream::iter(checks).buffered(CHECKED_AT_ONCE);
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
                // It was put together with others in this moment.
                None => {}
            }
        }
        drop(checks);
        let rows = damaged.iter().map(|file| file.rows).sum();
        Ok((Self { folder, model, files: intact, damaged: rows, waiting: Vec::new() }, damaged))
    }

    /// Scores of this model.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Scores of this model that were in damaged files.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Why a read of the scores failed: the file that is damaged, if one is; what was noticed otherwise.
    pub async fn blame(&self, noticed: Error) -> Error {
        match self.check().await {
            Err(ObjectsError { place, problem, trouble: Trouble::Missing }) => {
                ObjectsError { place, problem, trouble: Trouble::Other }.into()
            }
            Err(error) => error.into(),
            Ok(()) => noticed,
        }
    }

    /// Finds out whether the files are still as they were written.
    ///
    /// # Errors
    /// A file that is damaged, or that cannot be read.
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

    /// The scores as a table: all of [`prediction_fields`], `key` and `tokens`.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub fn scores(&self, context: &SessionContext) -> Result<DataFrame, Error> {
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
        table().map_err(|e| self.failed(&e))
    }

    /// Forgets the rows that could not be scored, so that they are tried again.
    ///
    /// # Errors
    /// A place that cannot be read or written.
    pub async fn forget_errors(&mut self) -> Result<(), Error> {
        for file in std::mem::take(&mut self.files) {
            let bytes = self.read(&file).await?;
            match self.blocking(move || without_errors(bytes)).await? {
                None => self.files.push(file),
                Some((kept, rows)) => self.replace(vec![file], kept, rows).await?,
            }
        }
        Ok(())
    }

    /// Forgets all scores of this model.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub async fn forget(&mut self) -> Result<(), Error> {
        for file in std::mem::take(&mut self.files) {
            self.folder.objects.remove(&file.path).await?;
        }
        Ok(())
    }

    /// Keeps the outcomes of a window in memory until the next [`ScoreStore::commit`]; `keys` are of its rows.
    ///
    /// # Errors
    /// A window and keys of different lengths.
    pub fn remember(
        &mut self,
        keys: &ArrayRef,
        outcomes: &[Result<Prediction, Rejection>],
        scorer: &Scorer,
    ) -> Result<(), Error> {
        let predictions: StructArray = predictions_to_array(outcomes, &scorer.model().config);
        let (_, predicted, _) = predictions.into_parts();
        let tokens = |outcome: &Result<Prediction, Rejection>| i32::try_from(outcome.as_ref().ok()?.tokens).ok();
        let tokens: ArrayRef = Arc::new(outcomes.iter().map(tokens).collect::<Int32Array>());
        let columns = [Arc::clone(keys)].into_iter().chain(predicted).chain([tokens]);
        let columns =
            columns.zip(SCHEMA.fields()).map(|(column, field)| arrow::compute::cast(&column, field.data_type()));
        let batch = columns.collect::<Result<Vec<_>, _>>();
        let batch = batch.and_then(|columns| RecordBatch::try_new(Arc::clone(&SCHEMA), columns));
        self.waiting.push(batch.map_err(|e| self.failed(&e.into()))?);
        Ok(())
    }

    /// Rows that a kill would lose now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(RecordBatch::num_rows).sum()
    }

    /// The memory that they take.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(RecordBatch::get_array_memory_size).sum()
    }

    /// Makes what was scored since the last time a part of the table, in one step.
    ///
    /// # Errors
    /// A place that cannot be written; a later run scores those texts again.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let batches = std::mem::take(&mut self.waiting);
        if batches.is_empty() {
            return Ok(());
        }
        let rows = batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
        let file = self.blocking(move || to_parquet(&batches)).await?;
        self.replace(Vec::new(), file, rows).await
    }

    /// Makes many small files into few, once there are very many; what fails here can be done another time.
    pub async fn compact(&mut self) {
        let small = self.files.iter().filter(|file| file.bytes < SMALL).count();
        if small < FILES_TO_COMPACT {
            return;
        }
        if let Err(error) = self.try_compact().await {
            tracing::warn!("the score store could not be compacted: {error}");
        }
    }

    async fn try_compact(&mut self) -> Result<(), Error> {
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

    /// Writes a file, then removes those whose scores it has.
    async fn replace(&mut self, old: Vec<ScoreFile>, file: Vec<u8>, rows: u64) -> Result<(), Error> {
        let written = if rows == 0 { None } else { Some(write(&self.folder, &self.model, file, rows).await?) };
        for file in old.iter().filter(|old| written.as_ref().is_none_or(|written| written.path != old.path)) {
            self.folder.objects.remove(&file.path).await?;
        }
        // The same scores may have been written before.
        let known: HashSet<&Path> = self.files.iter().map(|file| &file.path).collect();
        let written = written.filter(|file| !known.contains(&file.path));
        self.files.extend(written);
        Ok(())
    }

    /// A file in memory, as it was written.
    async fn read(&self, file: &ScoreFile) -> Result<bytes::Bytes, Error> {
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
    ) -> Result<T, Error> {
        let done =
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(DataFusionError::External(Box::new(e))));
        done.map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &DataFusionError) -> Error {
        Error::sql(format!("the score store {}", self.folder.objects), error, None)
    }
}

/// The digest of a file as it is now; none if it is not there.
async fn digest(objects: &Objects, file: &ScoreFile, model: &str) -> Result<Option<String>, ObjectsError> {
    let failed = |e: StoreError| objects.error_at(&file.path, &e);
    let found = match objects.store.get(&file.path).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        found => found.map_err(failed)?,
    };
    let mut hasher = super::score_file::hasher(model);
    match found.payload {
        GetResultPayload::File(file, path) => {
            let read = tokio::task::spawn_blocking(move || hasher.update_reader(file).map(|hasher| hasher.finalize()));
            let hashed = read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
            let place = Place::Local(path);
            let hashed = hashed.map_err(|e| ObjectsError::new(&place, Trouble::Other, e.to_string()))?;
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
