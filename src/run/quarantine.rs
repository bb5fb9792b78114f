//! Quarantine: a separate table of rejected rows. Two tables cannot be committed atomically, so the sink's commit
//! decides for both. Rejected rows are written first, and count once the sink has the other rows of the same run.
//!
//! - **Delta tables.** The sink's commit records the version of the rejected-rows table that belongs to it.
//! - **Folders of runs.** Rejected rows count if the sink has the same run.
//! - **Single Parquet file.** Rejected rows are in a hidden file named after their run. Once the footer of the sink's
//!   file names that run, the hidden file is moved into place.
//!
//! So `rejected` in `couplet query` has the rows of finished runs only, whenever a run is killed. Other programs that
//! read the place of rejected rows may see those of a run that was killed before its commit, until the next run.

use couplet_storage::files::{folder_of, remove_leftovers};
use couplet_storage::lock::Explained;
use couplet_storage::objects::{Objects, PENDING};
use couplet_storage::place::Place;
use couplet_tables::delta;
use couplet_tables::sink::runs::{self, RunsError};
use couplet_tables::sink::{Origin, SinkError, rejected_version};
use couplet_tables::tables::TableFormat;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt as _};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;

use super::sinks::rejected_place;
use crate::config::{Sink, SinkFormat, SinkMode};
use crate::error::Error;

/// Returns the place and format of the rejected rows of the sink's published runs; `None` if there are none.
///
/// # Errors
/// A place that cannot be read.
pub(crate) async fn published(pipeline: &str, sink: &Sink) -> Result<Option<(Place, TableFormat)>, Error> {
    let main = Objects::open(&sink.location.place)?;
    let place = rejected_place(&sink.location.place);
    if sink.format == SinkFormat::Delta {
        let version = rejected_version(&main, pipeline).await?;
        return Ok(version.map(|version| (place, TableFormat::Delta { version: Some(version) })));
    }
    if !sink.is_one_file() {
        let all = sink.mode == SinkMode::Append;
        let there = runs::readable(&Objects::open(&place)?.lock_place(), all, Some(&main.lock_place())).await?;
        let format = TableFormat::Runs { all, published_in: Some(main.place) };
        return Ok((!there.is_empty()).then_some((place, format)));
    }
    let Some(meta) = main.head().await? else { return Ok(None) };
    let run = run_of(&main, meta.size).await?;
    if let Some(pending) = run.map(|run| pending_place(&place, &run))
        && Objects::open(&pending)?.exists().await?
    {
        return Ok(Some((pending, TableFormat::Parquet)));
    }
    Ok(Objects::open(&place)?.exists().await?.then_some((place, TableFormat::Parquet)))
}

/// Returns the run that wrote a Parquet file of `size` bytes, if its footer names one.
async fn run_of(objects: &Objects, size: u64) -> Result<Option<String>, Error> {
    let failed = |problem: Explained| SinkError { path: objects.to_string().into(), problem };
    let mut tail = 64 << 10;
    let footer = loop {
        let end = objects.store.get_range(&objects.root, size.saturating_sub(tail)..size).await;
        let end = end.map_err(|e| objects.error(&e))?;
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&end, size) {
            Ok(()) => break reader.finish().map_err(|e| failed(e.to_string().into()))?,
            Err(ParquetError::NeedMoreData(more)) if more as u64 > tail => tail = more as u64,
            Err(error) => return Err(failed(error.to_string().into()).into()),
        }
    };
    let mut metadata = footer.file_metadata().key_value_metadata().into_iter().flatten();
    Ok(metadata.find(|pair| pair.key == delta::RUN).and_then(|pair| pair.value.clone()))
}

/// Returns the place of a run's rejected rows until the sink has committed.
pub(super) fn pending_place(place: &Place, run: &str) -> Place {
    place.with_name(&format!(".{}.{run}{PENDING}", place.name()))
}

/// Removes rejected runs of a pipeline and store that the sink does not have: they were not finished, or are older than
/// the sink keeps. The sink's own run must have begun, so that none of them can complete any more.
///
/// # Errors
/// A place that cannot be read or written.
pub(super) async fn remove_unpublished(main: &Objects, rejected: &Objects, origin: &Origin) -> Result<(), RunsError> {
    let has: Vec<String> = runs::all(&main.lock_place()).await?.into_iter().map(|manifest| manifest.run_id).collect();
    let place = rejected.lock_place();
    for manifest in runs::all(&place).await? {
        let own = manifest.pipeline == origin.pipeline && manifest.store == origin.store;
        if own && !has.contains(&manifest.run_id) {
            runs::remove(&place, &manifest).await?;
        }
    }
    Ok(())
}

/// Rejected rows of a single-file sink that are not in place yet.
pub(super) struct Pending {
    rejected: Objects,
    own: Path,
    /// Files of unfinished runs, which cannot complete once this run has.
    others: Vec<Path>,
}

impl Pending {
    /// Lists the pending files before the sink's commit.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub(super) async fn of(place: &Place, run: &str) -> Result<Self, Error> {
        let rejected = Objects::open(place)?;
        // Temporary files of runs that were killed while writing: their names have the run's id, so no other run finds
        // them.
        if let Some(path) = place.local() {
            remove_leftovers(folder_of(path), &format!("..{}.", place.name()), |path| std::fs::remove_file(path));
        }
        let own = Objects::open(&pending_place(place, run))?.root;
        let folder = own.parent().unwrap_or_default();
        let listed = rejected.store.list_with_delimiter(Some(&folder)).await.map_err(|e| rejected.error(&e))?;
        let prefix = format!(".{}.", place.name());
        let is_pending = |path: &Path| {
            path.filename().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(PENDING)) && *path != own
        };
        let others = listed.objects.into_iter().map(|object| object.location).filter(is_pending).collect();
        Ok(Self { rejected, own, others })
    }

    /// Moves the rows into place after the sink's commit, and removes those of other runs. Failures are only logged:
    /// the rows count where they are.
    pub(super) async fn settle(self) {
        let Self { rejected, own, others } = self;
        match rejected.store.rename(&own, &rejected.root).await {
            // `NotFound`: the next run has already moved it.
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => tracing::warn!("rejected rows stay at {own}: {}", rejected.error(&error)),
        }
        for other in others {
            match rejected.store.delete(&other).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => tracing::warn!("{other} could not be removed: {}", rejected.error(&error)),
            }
        }
    }
}
