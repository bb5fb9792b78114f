//! Finds the damaged file of a table after a read has failed: the libraries never name a damaged log entry, and not
//! always a damaged data file.

use bytes::Bytes;
use couplet_storage::objects::Objects;
use deltalake_core::DeltaTable;
use futures::TryStreamExt;
use object_store::{Error as StoreError, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::{DeltaError, LOG};

/// Returns an error for the first log entry that is not JSON, if any.
pub(super) async fn log_entry(objects: &Objects) -> Option<DeltaError> {
    let log = objects.folder(LOG);
    let mut entries: Vec<_> = log.store.list(Some(&log.root)).try_collect().await.ok()?;
    entries.retain(|entry| entry.location.extension() == Some("json"));
    entries.sort_by(|a, b| a.location.cmp(&b.location));
    for entry in entries {
        let json = log.store.get(&entry.location).await.ok()?.bytes().await.ok()?;
        if let Some(problem) = problem_of_entry(&json) {
            let file = objects.place_of(&entry.location);
            return Some(DeltaError::damaged(objects, format!("its log is damaged: {file}{problem}")));
        }
    }
    None
}

fn problem_of_entry(json: &[u8]) -> Option<String> {
    let mut lines = json.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()).peekable();
    if lines.peek().is_none() {
        return Some(" is empty".into());
    }
    lines.find_map(|(i, line)| {
        let error = serde_json::from_slice::<Map<String, Value>>(line).err()?;
        Some(format!(", line {}: no JSON object ({error})", i + 1))
    })
}

/// Returns an error for the first data file below `folder` that is missing or not a complete Parquet file, if any.
pub(crate) async fn data_file(objects: &Objects, table: &DeltaTable, folder: &str) -> Option<DeltaError> {
    let names: Vec<String> =
        table.snapshot().ok()?.log_data().into_iter().map(|file| file.path().to_string()).collect();
    for name in names.iter().filter(|name| name.starts_with(folder)) {
        let path = objects.path(name);
        let found = match objects.store.get(&path).await {
            Ok(found) => problem_of_data(found.bytes().await.ok()?),
            Err(StoreError::NotFound { .. }) => Some("is not there any more".into()),
            // If the store does not answer, nothing is known about the file.
            Err(_) => return None,
        };
        if let Some(problem) = found {
            return Some(DeltaError::damaged(objects, format!("{} {problem}", objects.place_of(&path))));
        }
    }
    None
}

fn problem_of_data(bytes: Bytes) -> Option<String> {
    let length = bytes.len();
    let read = || -> Result<(), Box<dyn std::error::Error>> {
        ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()?.try_for_each(|batch| batch.map(drop))?;
        Ok(())
    };
    read().err().map(|error| format!("is damaged: not a whole Parquet file ({length} bytes): {error}"))
}
