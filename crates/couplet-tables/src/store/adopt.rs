//! Migration of scores from the previous version, which stored them as a Delta table.

use couplet_storage::objects::{StoreFolder, Trouble};
use object_store::ObjectStoreExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::StoreError;
use super::names::{is_log, is_part};
use super::scores::{FOLDER, folder_of, write};
use crate::delta::{self, LOG};

/// Description of the previous version's table of scores; another table at its place is not couplet's.
const DESCRIPTION: &str = "couplet: scores by text";

/// Migrates the scores of the previous version, if any. Only the run that holds the lock may call this.
///
/// # Errors
/// A place that cannot be read or written.
pub(super) async fn adopt(store: &StoreFolder) -> Result<(), StoreError> {
    let scores = store.folder(FOLDER);
    let log = scores.objects.folder(LOG);
    let mut entries = log.entries().await?.files;
    entries.retain(|file| is_log(&file.name));
    if entries.is_empty() {
        return Ok(());
    }
    let table = match delta::open(&scores.objects, None).await {
        Ok(Some(table)) => table,
        Ok(None) => return Ok(()),
        Err(error) if matches!(error.trouble, Trouble::Refused | Trouble::Settings | Trouble::Unreachable) => {
            return Err(error.into());
        }
        Err(error) => {
            tracing::warn!("{} has a Delta table that cannot be read, and stays as it is: {error}", scores.objects);
            return Ok(());
        }
    };
    let snapshot = table.snapshot().map_err(|e| delta::DeltaError::new(&scores.objects, &e))?;
    if snapshot.metadata().description() != Some(DESCRIPTION) {
        return Ok(());
    }
    tracing::info!("adding checksums to the scores in {}, which an earlier version wrote without them", store.objects);
    let names: Vec<String> = snapshot.log_data().into_iter().map(|file| file.path().to_string()).collect();
    for name in names {
        migrate_file(store, &name).await?;
    }
    // The log is removed last, as it identifies the files: after a kill, the next run finds the rest.
    for folder in scores.objects.entries().await?.folders.into_iter().filter(|name| name.starts_with("model=")) {
        let folder = scores.objects.folder(&folder);
        for file in folder.entries().await?.files.into_iter().filter(|file| is_part(&file.name)) {
            folder.remove(&file.path).await?;
        }
    }
    // Newest entry first, so that a partly removed log is still a valid log.
    entries.sort_by(|a, b| b.name.cmp(&a.name));
    for entry in &entries {
        log.remove(&entry.path).await?;
    }
    log.remove_if_empty();
    Ok(())
}

/// Copies a file of the table to its new name.
async fn migrate_file(store: &StoreFolder, name: &str) -> Result<(), StoreError> {
    let scores = store.folder(FOLDER).objects;
    let path = scores.path(name);
    let Some((model, _)) = name.strip_prefix("model=").and_then(|rest| rest.split_once('/')) else { return Ok(()) };
    let bytes = match scores.store.get(&path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(()),
        found => async { found?.bytes().await }.await.map_err(|e| scores.error_at(&path, &e))?,
    };
    let read = bytes.clone();
    let rows = tokio::task::spawn_blocking(move || -> Result<u64, parquet::errors::ParquetError> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(read)?.build()?;
        reader.map(|batch| Ok(batch?.num_rows() as u64)).sum()
    });
    if let Ok(Ok(rows)) = rows.await {
        write(&folder_of(store, model), model, bytes.into(), rows).await?;
    } else {
        tracing::warn!("{} is damaged, and its texts are scored anew", scores.place_of(&path));
    }
    Ok(())
}
