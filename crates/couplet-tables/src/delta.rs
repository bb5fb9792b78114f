//! Delta tables on any object store: opening, creating, querying and writing.
//!
//! A Delta table consists of data files and a log. A commit creates one log entry if it does not exist yet. So a table
//! moves from one version to the next atomically, and of two concurrent writers the second one gets a conflict. Files
//! that no log entry names (a killed run leaves some) are never read.

mod damaged;
mod escaped;
mod exact;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use arrow::error::ArrowError;
use couplet_storage::backtrace::without_frames;
use couplet_storage::objects::{Objects, ObjectsError, Trouble, cause_in, cut_responses};
use couplet_storage::place::Place;
use couplet_storage::trouble::causes;
use datafusion::catalog::TableProvider;
use datafusion::execution::context::QueryPlanner;
use datafusion::prelude::SessionContext;
use deltalake_core::delta_datafusion::planner::DeltaPlanner;
use deltalake_core::kernel::StructType;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::table::state::DeltaTableState;
use deltalake_core::{DeltaTable, DeltaTableError, TableProperty};
use futures::TryStreamExt;
use object_store::prefix::PrefixStore;
use parquet::errors::ParquetError;
use thiserror::Error;

pub(crate) use damaged::data_file;
use escaped::Escaped;
use exact::ExactScan;
pub(crate) use exact::inexact;

/// Commit metadata key with the id of the run that committed.
pub const RUN: &str = "couplet.run";

/// Returns a planner for queries that write to Delta tables; other nodes are planned as usual.
#[must_use]
pub fn query_planner() -> Arc<dyn QueryPlanner + Send + Sync> {
    DeltaPlanner::new()
}

/// Returns true if a Parquet file could not be read, according to an error or one of its causes.
#[must_use]
pub fn is_unreadable_parquet(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|cause| {
        // delta-rs keeps only the text of DataFusion's shared errors, such as one of a join's build side.
        matches!(cause.downcast_ref(), Some(DeltaTableError::Generic(text)) if text.contains("Parquet"))
            || matches!(cause.downcast_ref(), Some(ArrowError::ParquetError(_)))
            || cause.is::<ParquetError>()
    })
}

/// A Delta table that cannot be read or written.
#[derive(Debug, Error)]
#[error("Delta table {url}: {problem}")]
pub struct DeltaError {
    /// The table's URL.
    pub url: String,
    /// The problem.
    pub problem: String,
    /// The kind of problem.
    #[source]
    pub trouble: Trouble,
}

impl DeltaError {
    /// Creates an error for a damaged table.
    fn damaged(objects: &Objects, problem: String) -> Self {
        Self { url: objects.to_string(), problem, trouble: Trouble::Damaged }
    }

    /// Creates an error for a request that the table cannot satisfy.
    pub(crate) fn mistake(objects: &Objects, problem: String) -> Self {
        Self { url: objects.to_string(), problem, trouble: Trouble::Mistake }
    }

    /// Appends a fix to the message if the table is damaged.
    pub(crate) fn with_fix(self, fix: &str) -> Self {
        if self.trouble != Trouble::Damaged {
            return self;
        }
        Self { problem: format!("{}; {fix}", self.problem), ..self }
    }

    /// Wraps an error of delta-rs with the table's URL.
    pub(crate) fn new(objects: &Objects, error: &(dyn std::error::Error + 'static)) -> Self {
        let (problem, trouble) = match cause_in(error).filter(|_| matches!(objects.place, Place::Remote(_))) {
            Some(cause) => {
                let ObjectsError { problem, trouble, .. } = objects.error(cause);
                // Another process may have removed a file.
                (problem, if trouble == Trouble::Missing { Trouble::Other } else { trouble })
            }
            None => (without_frames(&cut_responses(&error.to_string())).to_owned(), Trouble::of(error)),
        };
        Self { url: objects.to_string(), problem, trouble }
    }
}

/// Opens a table at the given version, or at the newest one. `None` if it does not exist.
///
/// # Errors
/// A log that cannot be read; a version that does not exist.
pub async fn open(objects: &Objects, version: Option<u64>) -> Result<Option<DeltaTable>, DeltaError> {
    let failed = |e: DeltaTableError| DeltaError::new(objects, &e);
    let mut table = DeltaTable::new(log_store(objects));
    if !table.verify_deltatable_existence().await.map_err(failed)? {
        return Ok(None);
    }
    let loaded = match version {
        None => table.load().await.map_err(failed),
        Some(version) => match table.load_version(version).await {
            Ok(()) => Ok(()),
            Err(e) => {
                let error = failed(e);
                return Err(match newest_version(objects).await {
                    Some(newest) if newest < version => {
                        let problem = format!("there is no version {version}; the newest is {newest}");
                        DeltaError::mistake(objects, problem)
                    }
                    _ if oldest_version(objects).await.is_some_and(|oldest| version < oldest) => {
                        let problem = format!(
                            "there is no version {version} any more: the table property delta.logRetentionDuration \
                             limits the age of the log, by default to 30 days; name a newer version"
                        );
                        DeltaError::mistake(objects, problem)
                    }
                    _ => {
                        let problem = format!("version {version} cannot be read: {}", error.problem);
                        DeltaError { problem, ..error }
                    }
                });
            }
        },
    };
    match loaded {
        Ok(()) => Ok(Some(table)),
        Err(error) => Err(damaged::log_entry(objects).await.unwrap_or(error)),
    }
}

/// The folder of a table's log.
pub const LOG: &str = "_delta_log";

/// Returns the version of the oldest checkpoint, or `None` if the log goes back to the first version.
async fn oldest_version(objects: &Objects) -> Option<u64> {
    let log = objects.folder(LOG);
    let entries: Vec<_> = log.store.list(Some(&log.root)).try_collect().await.ok()?;
    let names = || entries.iter().filter_map(|entry| entry.location.filename());
    if names().any(|name| name == "00000000000000000000.json") {
        return None;
    }
    let checkpoints = names().filter(|name| name.contains(".checkpoint."));
    checkpoints.filter_map(|name| name.split('.').next()?.parse().ok()).min()
}

async fn newest_version(objects: &Objects) -> Option<u64> {
    let mut table = DeltaTable::new(log_store(objects));
    table.load().await.ok()?;
    table.version()
}

/// Opens a table, or creates it with this schema. `statistics` lists the columns with minimum and maximum values in the
/// log.
///
/// # Errors
/// A place that cannot be read or written; a schema that Delta cannot represent.
pub async fn open_or_create(
    objects: &Objects,
    schema: &Schema,
    partition_by: &[&str],
    statistics: &str,
    description: &str,
) -> Result<DeltaTable, DeltaError> {
    let failed = |e: DeltaTableError| DeltaError::new(objects, &e);
    if let Some(table) = open(objects, None).await? {
        return Ok(table);
    }
    let columns: StructType = (&for_delta(schema)).try_into_kernel().map_err(|e| DeltaError::new(objects, &e))?;
    let created = CreateBuilder::new()
        .with_log_store(log_store(objects))
        .with_columns(columns.fields().cloned())
        .with_partition_columns(partition_by.iter().copied())
        .with_comment(description)
        .with_configuration_property(TableProperty::DataSkippingStatsColumns, Some(statistics))
        .await;
    match created {
        Ok(table) => Ok(table),
        // The table may have been created concurrently, or by this run in an attempt whose response was lost.
        Err(error) => open(objects, None).await?.ok_or_else(|| failed(error)),
    }
}

/// Returns the table if a run has committed to it after version `after`. For a run whose commit got no response.
///
/// # Errors
/// A log that cannot be read.
pub async fn has_committed(objects: &Objects, run: &str, after: Option<u64>) -> Result<Option<DeltaTable>, DeltaError> {
    let Some(table) = open(objects, None).await? else { return Ok(None) };
    let commits = commits_since(objects, &table, after).await?;
    let own = commits.iter().any(|commit| commit.get(RUN).is_some_and(|other| other == run));
    Ok(own.then_some(table))
}

/// Returns the string metadata of the commits after version `after`.
///
/// # Errors
/// A log that cannot be read.
pub async fn commits_since(
    objects: &Objects,
    table: &DeltaTable,
    after: Option<u64>,
) -> Result<Vec<HashMap<String, String>>, DeltaError> {
    let newest = table.version().unwrap_or_default();
    let since = usize::try_from(newest - after.map_or(0, |version| version.min(newest))).unwrap_or(usize::MAX);
    let limit = since.saturating_add(usize::from(after.is_none()));
    let commits: Vec<_> = table.history(Some(limit)).try_collect().await.map_err(|e| DeltaError::new(objects, &e))?;
    let texts = commits.into_iter().map(|commit| {
        let texts = commit.info.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
        texts.collect()
    });
    Ok(texts.collect())
}

/// Column metadata key with the column's name in the data files, if it differs.
const PHYSICAL_NAME: &str = "delta.columnMapping.physicalName";

/// Converts a Delta table to a table of its data files. It is an extension of sessions whose plans run in other
/// processes, because the scan that reads the log cannot be serialized.
#[derive(Debug, Clone, Copy)]
pub struct FileScan(
    /// Creates the table provider.
    pub fn(&Objects, &DeltaTable, &SessionContext) -> datafusion::common::Result<Arc<dyn TableProvider>>,
);

/// Creates a table provider for queries.
///
/// # Errors
/// A table that needs a Delta feature that this version does not support.
pub async fn provider(
    objects: &Objects,
    table: &DeltaTable,
    context: &SessionContext,
) -> Result<Arc<dyn TableProvider>, DeltaError> {
    if let Some(scan) = context.copied_config().get_extension::<FileScan>() {
        let files = (scan.0)(objects, table, context);
        return files.map_err(|e| DeltaError { problem: e.strip_backtrace(), ..DeltaError::new(objects, &e) });
    }
    let failed = |e: DeltaTableError| DeltaError::new(objects, &e);
    let state = context.state();
    table.update_datafusion_session(&state).map_err(failed)?;
    let provider = table.table_provider().with_session(Arc::new(state)).await;
    let provider = provider.map_err(|e| DeltaError::new(objects, &e))?;
    let snapshot = table.snapshot().map_err(failed)?;
    let partitions = snapshot.metadata().partition_columns().to_vec();
    Ok(Arc::new(ExactScan::new(provider, partitions, has_mapped_columns(snapshot))))
}

/// Returns true if the table's files use other names for its columns.
#[must_use]
pub fn has_mapped_columns(table: &DeltaTableState) -> bool {
    table.schema().fields().any(|field| field.metadata().contains_key(PHYSICAL_NAME))
}

/// Returns the number of rows and bytes of the table's files, from its log.
///
/// # Errors
/// A table that was not loaded.
pub fn size(objects: &Objects, table: &DeltaTable) -> Result<(u64, u64), DeltaError> {
    let snapshot = table.snapshot().map_err(|e| DeltaError::new(objects, &e))?;
    let files = snapshot.log_data();
    let (mut rows, mut bytes) = (0, 0);
    for file in files {
        rows += file.num_records().unwrap_or_default() as u64;
        bytes += u64::try_from(file.size()).unwrap_or_default();
    }
    Ok((rows, bytes))
}

/// Maps a schema to types that Delta supports: no views, no dictionaries, no unsigned integers, timestamps in
/// microseconds, and UTC as the only time zone.
#[must_use]
pub fn for_delta(schema: &Schema) -> Schema {
    fn known(data_type: &DataType) -> DataType {
        match data_type {
            DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
            DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => DataType::Binary,
            DataType::UInt8 => DataType::Int16,
            DataType::UInt16 => DataType::Int32,
            DataType::UInt32 | DataType::UInt64 => DataType::Int64,
            DataType::Float16 => DataType::Float32,
            DataType::Date64 => DataType::Date32,
            DataType::Timestamp(_, zone) => {
                DataType::Timestamp(TimeUnit::Microsecond, zone.as_ref().map(|_| "UTC".into()))
            }
            DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
                DataType::Decimal128(*precision, *scale)
            }
            DataType::Dictionary(_, values) => known(values),
            DataType::RunEndEncoded(_, values) => known(values.data_type()),
            DataType::Struct(fields) => DataType::Struct(fields.iter().map(field_known).collect()),
            DataType::Map(entries, sorted) => DataType::Map(field_known(entries), *sorted),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::LargeListView(item)
            | DataType::FixedSizeList(item, _) => {
                DataType::List(Arc::new(Field::new("element", nested(item.data_type()), item.is_nullable())))
            }
            other => other.clone(),
        }
    }
    fn nested(data_type: &DataType) -> DataType {
        match data_type {
            DataType::Null => DataType::Utf8,
            other => known(other),
        }
    }
    fn field_known(field: &FieldRef) -> FieldRef {
        Arc::new(Field::clone(field).with_data_type(nested(field.data_type())))
    }
    let fields = schema.fields().iter().map(|field| Field::clone(field).with_data_type(known(field.data_type())));
    Schema::new_with_metadata(fields.collect::<Vec<_>>(), HashMap::default())
}

pub(crate) fn log_store(objects: &Objects) -> LogStoreRef {
    let root = Arc::clone(&objects.store);
    let prefixed = Arc::new(PrefixStore::new(Arc::clone(&root), objects.root.clone()));
    let root = Escaped::if_needed(root, &objects.root);
    default_logstore(prefixed, root, &escaped::escape_url(&objects.url), &StorageConfig::default())
}

#[cfg(test)]
mod tests {
    use datafusion::common::DataFusionError;

    use super::*;

    #[test]
    fn an_error_of_a_parquet_file_is_known_behind_other_errors() {
        let shared = || DataFusionError::from(ParquetError::EOF("no footer".into()));
        let shared = DataFusionError::Shared(Arc::new(shared().context("a join")));
        assert!(is_unreadable_parquet(&shared) && is_unreadable_parquet(&DeltaTableError::from(shared)));
        assert!(!is_unreadable_parquet(&DeltaTableError::generic("the disk is full")));
    }
}
