//! Table of runs: a Delta table with one row per run, for SQL queries.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use chrono::{Duration, Utc};
use couplet_storage::objects::Objects;
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::col;
use datafusion::prelude::SessionContext;
use deltalake_core::DeltaTable;
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::operations::write::SchemaMode;
use deltalake_core::protocol::SaveMode;
use serde_json::json;

use super::StoreError;
use super::names::is_part;
use super::record::{RunRecord, SCHEMA};
use crate::delta::{self, DeltaError};

/// The table of runs in a store.
#[derive(Debug, Clone)]
pub struct Runs {
    objects: Objects,
}

impl Runs {
    /// Returns the table of runs in a store. Creates nothing.
    #[must_use]
    pub fn of(store: &Objects) -> Self {
        Self { objects: store.folder("runs") }
    }

    /// Removes data files older than `keep` that no version of the table uses. Returns their number. With `dry_run`, it
    /// only counts them.
    pub(super) async fn clean(&self, keep: Duration, dry_run: bool) -> Result<usize, StoreError> {
        let Some(table) = self.open().await? else { return Ok(0) };
        let files = table.snapshot().map_err(|e| DeltaError::new(&self.objects, &e))?.log_data();
        let named: HashSet<String> = files.into_iter().map(|file| file.path().to_string()).collect();
        let before = Utc::now() - keep;
        let mut files = self.objects.entries().await?.files;
        // Rows are only appended, so a file that the newest version does not use is used by none.
        files.retain(|file| is_part(&file.name) && !named.contains(&file.name) && file.modified < before);
        for file in files.iter().filter(|_| !dry_run) {
            self.objects.remove(&file.path).await?;
        }
        Ok(files.len())
    }

    /// Opens the table, if there has been a run.
    async fn open(&self) -> Result<Option<DeltaTable>, DeltaError> {
        delta::open(&self.objects, None).await.map_err(|e| self.with_fix(e))
    }

    /// Adds the fix to the error of a damaged table.
    fn with_fix(&self, error: DeltaError) -> DeltaError {
        let fix = format!("remove {}: the list of runs starts over, and no score or output is lost", self.objects);
        error.with_fix(&fix)
    }

    /// Appends the record of a run.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub async fn add(&self, record: &RunRecord) -> Result<(), StoreError> {
        let batch = record.to_batch().map_err(|e| self.failed(e.into()))?;
        let table = delta::open_or_create(&self.objects, &SCHEMA, &[], "run", "couplet: one row a run").await;
        let table = table.map_err(|e| self.with_fix(e))?;
        let properties = CommitProperties::default().with_metadata([(delta::RUN.to_owned(), json!(record.run))]);
        // A table of an earlier version gets the columns that it lacks.
        let write = table.write(vec![batch]).with_save_mode(SaveMode::Append).with_schema_mode(SchemaMode::Merge);
        let written = write.with_commit_properties(properties).await;
        written.map_err(|e| DeltaError::new(&self.objects, &e))?;
        Ok(())
    }

    /// Returns the runs as a table, if there has been one.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn provider(&self, context: &SessionContext) -> Result<Option<Arc<dyn TableProvider>>, StoreError> {
        match self.open().await? {
            Some(table) => Ok(Some(delta::provider(&self.objects, &table, context).await?)),
            None => Ok(None),
        }
    }

    /// Returns the runs of a pipeline with the columns of [`RunRecord`], the latest to start scoring first.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn list(&self, pipeline: &str, limit: usize) -> Result<Vec<RecordBatch>, StoreError> {
        let context = SessionContext::new();
        crate::session::register_local_disk(&context.runtime_env());
        let Some(table) = self.open().await? else { return Ok(Vec::new()) };
        let provider = delta::provider(&self.objects, &table, &context).await?;
        let list = async {
            context
                .read_table(provider)?
                .filter(col("pipeline").eq(datafusion::logical_expr::lit(pipeline)))?
                // An id begins with the time at which the run took the lock. A run that trained before that may have
                // started earlier than the run before it.
                .sort(vec![col("run").sort(false, true)])?
                .limit(0, Some(limit))?
                .collect()
                .await
        };
        let batches = match list.await {
            Ok(batches) => batches,
            Err(error) => {
                let damaged = delta::data_file(&self.objects, &table, "").await;
                return Err(damaged.map_or_else(|| self.failed(error), |error| self.with_fix(error).into()));
            }
        };
        // The scan may return strings as views, and a table of an earlier version lacks columns.
        let plain = |batch: RecordBatch| {
            let columns = SCHEMA.fields().iter().map(|field| match batch.column_by_name(field.name()) {
                Some(column) => arrow::compute::cast(column, field.data_type()),
                None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            });
            RecordBatch::try_new(Arc::clone(&SCHEMA), columns.collect::<Result<_, _>>()?)
        };
        batches.into_iter().map(plain).collect::<Result<_, _>>().map_err(|e| self.failed(e.into()))
    }

    /// Returns the runs of a pipeline as records, in the order of [`Self::list`].
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn records(&self, pipeline: &str, limit: usize) -> Result<Vec<RunRecord>, StoreError> {
        let batches = self.list(pipeline, limit).await?;
        let rows = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
        Ok(rows.map(|(batch, row)| RunRecord::of_row(batch, row)).collect())
    }

    fn failed(&self, error: DataFusionError) -> StoreError {
        StoreError::Sql { origin: format!("the runs {}", self.objects), error: Box::new(error) }
    }
}
