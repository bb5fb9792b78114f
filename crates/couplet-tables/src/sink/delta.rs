//! Delta table sink: each run is one commit.
//!
//! The rows are written to data files first; one log entry then commits them. Concurrent readers see the previous
//! version. If the response to a commit was lost, the commit is looked up by run id, which every commit carries.
//!
//! A commit is conditional on the version that [`DeltaSink::open`] saw. If another commit came first:
//!
//! - Rows appended to an existing table are committed after it, unless it is of the same pipeline and store, or
//!   appended rows of the same key. Both are recorded as application transactions, and two commits with the same one
//!   conflict.
//! - Anything else, including the creation of a table, is a conflict: the table must be reopened.

mod columns;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use couplet_storage::files::NotDurable;
use couplet_storage::objects::{Objects, unconfirmed_in};
use datafusion::catalog::TableProvider;
use datafusion::common::Column;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use deltalake_core::delta_datafusion::DataFusionMixins;
use deltalake_core::kernel::Transaction;
use deltalake_core::kernel::transaction::{CommitProperties, TransactionError};
use deltalake_core::operations::write::SchemaMode;
use deltalake_core::protocol::SaveMode;
use deltalake_core::{DeltaTable, DeltaTableError, TableProperty};
use parquet::file::properties::WriterProperties;
use serde_json::json;

use self::columns::{
    as_in_table, differences, exact_statistics, ids_problem, partitions_problem, typed_as, types_problem,
};
use super::fit;
use crate::delta::{self, DeltaError};
use crate::sink::Origin;

/// The effect of a commit on the existing rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Replaces all of them.
    Overwrite,
    /// Keeps them.
    Append,
    /// Replaces those with the id of a new row.
    Merge,
}

/// A commit that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The table version with the run's rows.
    pub version: u64,
    /// The size of all its files in bytes.
    pub bytes: u64,
}

/// A commit that failed, or whose outcome is unknown.
#[derive(Debug)]
pub struct Unpublished {
    /// The cause.
    pub source: DeltaTableError,
    /// True if the commit is known not to have been made.
    pub known: bool,
    /// True if another writer committed first; the rows can be published once the table is reopened.
    pub conflict: bool,
    /// The message if the commit was made after all, but the disk did not confirm it.
    pub not_durable: Option<String>,
}

impl Unpublished {
    fn new(source: DeltaTableError, known: bool) -> Self {
        Self { conflict: known && is_conflict(&source), known, source, not_durable: None }
    }
}

/// A table that a run will commit to.
#[derive(Debug)]
pub struct DeltaSink {
    objects: Objects,
    table: Option<DeltaTable>,
    mode: Mode,
    partition_by: Vec<String>,
    id: Vec<String>,
    origin: Origin,
    schema: SchemaRef,
    rejected: Option<u64>,
    /// True if a column that gets values now was all NULL before.
    gains_types: bool,
}

impl DeltaSink {
    /// Opens the table if it exists, and checks that rows of `schema` fit. `id` names the key columns for merging.
    ///
    /// # Errors
    /// A table that cannot be read, or that has other columns.
    pub async fn open(
        objects: &Objects,
        schema: &Schema,
        mode: Mode,
        partition_by: &[String],
        id: &[String],
        origin: Origin,
    ) -> Result<Self, DeltaError> {
        let table = delta::open(objects, None).await?;
        if let Some(problem) = ids_problem(schema, id).filter(|_| mode == Mode::Merge) {
            return Err(DeltaError::mistake(objects, problem));
        }
        let existing = table.as_ref().filter(|_| mode != Mode::Overwrite).map(DeltaTable::snapshot).transpose();
        let existing =
            existing.map_err(|e| DeltaError::new(objects, &e))?.map(|snapshot| snapshot.snapshot().read_schema());
        let (mut schema, mut gains_types) = (delta::for_delta(&typed_as(schema, existing.as_deref())), false);
        if let Some(problem) = types_problem(&schema) {
            return Err(DeltaError::mistake(objects, problem));
        }
        if let Some(problem) = partitions_problem(&schema, partition_by) {
            return Err(DeltaError::mistake(objects, problem));
        }
        if let Some(table) = table.as_ref().filter(|_| mode != Mode::Overwrite) {
            let snapshot = table.snapshot().map_err(|e| DeltaError::new(objects, &e))?;
            let problems = differences(&schema, &snapshot.snapshot().read_schema());
            if !problems.is_empty() {
                let problem = format!(
                    "the rows do not fit the table: {}; select the table's columns in the source query, write to another \
                     table, or replace this one with mode = \"overwrite\"",
                    problems.join("; ")
                );
                return Err(DeltaError::mistake(objects, problem));
            }
            let existing = snapshot.metadata().partition_columns();
            if existing != partition_by {
                let named = |names: &[String]| format!("[{}]", names.join(", "));
                let problem = format!(
                    "the table is partitioned by {}, and partition_by says {}; make it say the same, or replace the table \
                     with mode = \"overwrite\"",
                    named(existing),
                    named(partition_by)
                );
                return Err(DeltaError::mistake(objects, problem));
            }
            let existing = delta::for_delta(&snapshot.snapshot().read_schema());
            schema = as_in_table(&schema, Some(&existing));
            let is_void = |name: &String| existing.field_with_name(name).is_ok_and(|field| field.data_type().is_null());
            gains_types = schema.fields().iter().any(|field| is_void(field.name()) && !field.data_type().is_null());
        } else {
            schema = as_in_table(&schema, None);
        }
        let untyped = schema.fields().iter().find(|f| f.data_type().is_null() && partition_by.contains(f.name()));
        if let Some(field) = untyped {
            let problem = format!("partition_by names `{}`, which is NULL in every row", field.name());
            return Err(DeltaError::mistake(objects, problem));
        }
        Ok(Self {
            objects: objects.clone(),
            table,
            mode,
            partition_by: partition_by.to_vec(),
            id: id.to_vec(),
            origin,
            schema: Arc::new(schema),
            rejected: None,
            gains_types,
        })
    }

    /// Returns true if there is no table yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.table.is_none()
    }

    /// Returns true if the rows are merged into those of the table.
    #[must_use]
    pub fn merges(&self) -> bool {
        self.mode == Mode::Merge && !self.is_new()
    }

    /// Records the version of the rejected-rows table that belongs to these rows.
    #[must_use]
    pub fn with_rejected(self, version: Option<u64>) -> Self {
        Self { rejected: version, ..self }
    }

    /// Reverts what runs of the same pipeline and store have added to a rejected-rows table after version `published`:
    /// it belongs to rows that were never committed. If other writers have committed too, nothing is reverted.
    ///
    /// # Errors
    /// A table that cannot be read or written.
    pub async fn without_unpublished(mut self, published: Option<u64>) -> Result<Self, DeltaError> {
        let Some(table) = self.table.as_ref().filter(|_| self.mode != Mode::Overwrite) else { return Ok(self) };
        let commits = delta::commits_since(&self.objects, table, published).await?;
        if commits.is_empty() || !commits.iter().all(|commit| self.is_own(commit)) {
            return Ok(self);
        }
        let Some(version) = published else { return Ok(Self { mode: Mode::Overwrite, ..self }) };
        let restore = table.clone().restore().with_version_to_restore(version);
        match restore.with_commit_properties(self.properties(None)).await {
            Ok((restored, _)) => self.table = Some(restored),
            Err(error) if is_missing_file(&error) => tracing::warn!(
                "{}: a VACUUM has removed files of version {version}, so rows of an unfinished run stay until \
                 their ids are rejected again ({error})",
                self.objects
            ),
            Err(error) => return Err(DeltaError::new(&self.objects, &error)),
        }
        Ok(self)
    }

    /// Returns the version that the run saw; `None` if there was no table.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.table.as_ref().and_then(DeltaTable::version)
    }

    /// Returns true if rows were appended under the run's key up to the version that the run saw.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn has_key(&self) -> Result<bool, DeltaError> {
        let (Some(table), Some(transaction)) = (&self.table, self.key()) else { return Ok(false) };
        let failed = |e: DeltaTableError| DeltaError::new(&self.objects, &e);
        let state = table.snapshot().map_err(failed)?;
        let found = state.transaction_version(table.log_store().as_ref(), transaction.app_id).await;
        Ok(found.map_err(failed)?.is_some())
    }

    /// Returns the id of the run of the same pipeline and store that published after version `before`, if any.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn published_since(&self, before: Option<u64>) -> Result<Option<String>, DeltaError> {
        let Some(table) = &self.table else { return Ok(None) };
        let commits = delta::commits_since(&self.objects, table, before).await?;
        Ok(commits.iter().find(|commit| self.is_own(commit)).and_then(|commit| commit.get(delta::RUN).cloned()))
    }

    /// Returns true if a commit is of the same pipeline and store.
    fn is_own(&self, commit: &HashMap<String, String>) -> bool {
        commit.get(PIPELINE) == Some(&self.origin.pipeline) && commit.get(STORE) == Some(&self.origin.store)
    }

    /// Returns the schema of the rows, with the types of the table.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Casts the rows to the types of the table. A value that does not fit is an error of the stream.
    #[must_use]
    pub fn fitted(&self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        fit::fitted(rows, &self.schema)
    }

    /// Commits the rows, which are scanned once.
    ///
    /// # Errors
    /// Rows that end with an error; a place that cannot be written; a concurrent change. The table is unchanged.
    pub async fn publish(
        self,
        context: &SessionContext,
        rows: Arc<dyn TableProvider>,
        properties: WriterProperties,
    ) -> Result<Committed, Unpublished> {
        let (commit, before) = (self.properties(self.rejected), self.version());
        let table = match self.table.clone() {
            Some(table) => match self.with_exact_statistics(table).await {
                Ok(table) => Some(table),
                Err(source) => return Err(Unpublished::new(source, true)),
            },
            None => None,
        };
        let written = match table {
            Some(table) if self.mode == Mode::Merge => self.merge(table, context, rows, properties, commit).await,
            table => self.write(table, context, rows, properties, commit).await,
        };
        let table = match written {
            Ok(table) => table,
            // The commit may have been made and its response lost.
            Err(source) => match delta::has_committed(&self.objects, &self.origin.run, before).await {
                Ok(Some(table)) => match unconfirmed_in(&source) {
                    Some(error) => {
                        let not_durable = Some(NotDurable::new(error).to_string());
                        return Err(Unpublished { not_durable, ..Unpublished::new(source, true) });
                    }
                    None => table,
                },
                lookup => return Err(Unpublished::new(source, lookup.is_ok())),
            },
        };
        Ok(self.committed(&table))
    }

    fn committed(&self, table: &DeltaTable) -> Committed {
        let (_, bytes) = delta::size(&self.objects, table).unwrap_or_default();
        Committed { version: table.version().unwrap_or_default(), bytes }
    }

    /// Lists the columns with exact statistics in the table's properties, so that readers ignore the other statistics
    /// in its log.
    async fn with_exact_statistics(&self, table: DeltaTable) -> Result<DeltaTable, DeltaTableError> {
        let (key, names) = (TableProperty::DataSkippingStatsColumns.as_ref(), exact_statistics(&self.schema));
        if table.snapshot()?.metadata().configuration().get(key) == Some(&names) {
            return Ok(table);
        }
        // No retries: a retry would skip over what another writer has committed since the table was opened.
        let commit = CommitProperties::default().with_max_retries(0);
        table
            .set_tbl_properties()
            .with_properties([(key.to_owned(), names)].into())
            .with_commit_properties(commit)
            .await
    }

    async fn write(
        &self,
        table: Option<DeltaTable>,
        context: &SessionContext,
        rows: Arc<dyn TableProvider>,
        properties: WriterProperties,
        commit: CommitProperties,
    ) -> Result<DeltaTable, DeltaTableError> {
        let plan = context.read_table(rows)?.into_parts().1;
        let table = table.unwrap_or_else(|| DeltaTable::new(delta::log_store(&self.objects)));
        let mut write = table
            .write(Vec::new())
            .with_input_plan(plan)
            .with_session_state(Arc::new(context.state()))
            .with_partition_columns(self.partition_by.clone())
            .with_writer_properties(properties)
            .with_table_name(self.origin.pipeline.clone())
            .with_description("predictions of couplet")
            .with_configuration([(
                TableProperty::DataSkippingStatsColumns.as_ref(),
                Some(exact_statistics(&self.schema)),
            )])
            .with_commit_properties(commit);
        write = match self.mode {
            Mode::Overwrite => write.with_save_mode(SaveMode::Overwrite).with_schema_mode(SchemaMode::Overwrite),
            Mode::Append | Mode::Merge if self.gains_types => {
                write.with_save_mode(SaveMode::Append).with_schema_mode(SchemaMode::Merge)
            }
            Mode::Append | Mode::Merge => write.with_save_mode(SaveMode::Append),
        };
        write.await
    }

    async fn merge(
        &self,
        table: DeltaTable,
        context: &SessionContext,
        rows: Arc<dyn TableProvider>,
        properties: WriterProperties,
        commit: CommitProperties,
    ) -> Result<DeltaTable, DeltaTableError> {
        let of = |table: &str, name: &str| Expr::Column(Column::new(Some(table), name));
        // delta-rs skips files by the value range of an id that occurs in an equality; for some types the range in the
        // log is not exact.
        let inexact: HashSet<&str> = delta::inexact(&self.schema).collect();
        let same = self.id.iter().map(|name| {
            let (target, source) = (of("target", name), of("source", name));
            if inexact.contains(name.as_str()) { Expr::Not(Box::new(target.not_eq(source))) } else { target.eq(source) }
        });
        let same = same.reduce(Expr::and).ok_or_else(|| DeltaTableError::generic("a merge needs an id"))?;
        let names: Vec<String> = self.schema.fields().iter().map(|field| field.name().clone()).collect();
        let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
        let (table, _) = table
            .merge(context.read_table(rows)?, same)
            .with_source_alias("source")
            .with_target_alias("target")
            // The stream can be read only once, so it cannot be scanned for the range of its ids first.
            .with_streaming(true)
            .with_merge_schema(self.gains_types)
            .with_session_state(Arc::new(context.state()))
            .with_writer_properties(properties)
            .with_commit_properties(commit)
            .when_matched_update(|update| {
                names.iter().fold(update, |update, name| update.update(quoted(name), of("source", name)))
            })?
            .when_not_matched_insert(|insert| {
                names.iter().fold(insert, |insert, name| insert.set(quoted(name), of("source", name)))
            })?
            .await?;
        Ok(table)
    }

    fn properties(&self, rejected: Option<u64>) -> CommitProperties {
        let Origin { run, pipeline, store, .. } = &self.origin;
        let info = [(delta::RUN, run), (PIPELINE, pipeline), (STORE, store)];
        let commit = CommitProperties::default().with_metadata(info.map(|(key, value)| (key.to_owned(), json!(value))));
        // A second attempt at a commit that was made after all has the same transactions, and conflicts too.
        let lineage = Transaction::new(format!("couplet-store/{store}/{pipeline}"), 1);
        let rejected = rejected.and_then(|version| i64::try_from(version).ok());
        let rejected = rejected.map(|version| Transaction::new(rejected_app_id(pipeline), version));
        let transactions = [lineage].into_iter().chain(self.key()).chain(rejected);
        let commit = commit.with_application_transactions(transactions.collect());
        // delta-rs would append to a table that another writer has created meanwhile, without checking its commits.
        // Replaced or merged rows are computed from the version that was seen, so they must not be retried on another.
        if self.mode == Mode::Append && !self.is_new() { commit } else { commit.with_max_retries(0) }
    }

    /// Returns the transaction that marks rows as appended under the run's key.
    fn key(&self) -> Option<Transaction> {
        let Origin { pipeline, key, .. } = &self.origin;
        let key = key.as_ref().filter(|_| self.mode == Mode::Append)?;
        Some(Transaction::new(format!("couplet/{pipeline}/{key}"), 1))
    }
}

/// Returns the version of the rejected-rows table that belongs to a pipeline's latest commit to a table, if any.
///
/// # Errors
/// A table that cannot be read.
pub async fn rejected_version(objects: &Objects, pipeline: &str) -> Result<Option<u64>, DeltaError> {
    let Some(table) = delta::open(objects, None).await? else { return Ok(None) };
    let failed = |e: DeltaTableError| DeltaError::new(objects, &e);
    let state = table.snapshot().map_err(failed)?;
    let version =
        state.transaction_version(table.log_store().as_ref(), rejected_app_id(pipeline)).await.map_err(failed)?;
    Ok(version.and_then(|version| u64::try_from(version).ok()))
}

/// Returns the application id of the transaction whose version is that of the rejected-rows table.
fn rejected_app_id(pipeline: &str) -> String {
    format!("couplet-rejected/{pipeline}")
}

/// Commit metadata keys for the pipeline and its store.
const PIPELINE: &str = "couplet.pipeline";
const STORE: &str = "couplet.store";

/// Returns true if a version cannot be restored because one of its files is missing. The error of delta-rs (1.1) is a
/// private type, `RestoreError::MissingDataFile`, so its text decides.
fn is_missing_file(error: &DeltaTableError) -> bool {
    matches!(error, DeltaTableError::GenericError { source } if source.to_string().starts_with("Find missing file"))
}

/// Returns true if a commit was rejected because another came first.
fn is_conflict(error: &DeltaTableError) -> bool {
    match error {
        DeltaTableError::VersionAlreadyExists(_) => true,
        DeltaTableError::Transaction { source } => {
            matches!(source, TransactionError::CommitConflict(_) | TransactionError::MaxCommitAttempts(_))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_told_from_other_errors_of_a_restore() {
        let error = |text: &str| DeltaTableError::GenericError { source: text.into() };
        assert!(is_missing_file(&error("Find missing file part-0.parquet when restore.")));
        assert!(!is_missing_file(&error("Either the version or datetime should be provided for restore")));
    }
}
