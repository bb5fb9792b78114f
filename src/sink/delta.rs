//! A Delta table as the sink: each run is one commit.
//!
//! The rows are written to data files first; the commit then names them in one log entry. Whoever reads meanwhile
//! reads the version before. A commit whose answer was lost is looked up by the run's id, which every commit carries.
//!
//! A commit is conditional on the version that [`DeltaSink::open`] saw. If another one came first, then
//!
//! - rows that are appended to a table follow it, unless it is of the same pipeline and store, or appended rows of the
//!   same key: both are application transactions, and two commits with the same one conflict;
//! - anything else, also the creation of a table, is a conflict: the table must be opened again.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DataFusionError};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use deltalake_core::delta_datafusion::DataFusionMixins;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::transaction::{CommitProperties, TransactionError};
use deltalake_core::kernel::{StructType, Transaction};
use deltalake_core::operations::write::SchemaMode;
use deltalake_core::protocol::SaveMode;
use deltalake_core::{DeltaTable, DeltaTableError};
use futures::StreamExt;
use parquet::file::properties::WriterProperties;
use serde_json::json;

use crate::delta::{self, DeltaError};
use crate::files::nearest_name;
use crate::objects::Objects;
use crate::sink::Origin;

/// What becomes of the rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They go.
    Overwrite,
    /// They stay.
    Append,
    /// Those with the id of a new row go.
    Merge,
}

/// What was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The table's version that has the run's rows.
    pub version: u64,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// Rows that were not committed, as far as is known.
#[derive(Debug)]
pub struct Unpublished {
    /// Why not.
    pub source: DeltaTableError,
    /// Whether it is known that they were not.
    pub known: bool,
    /// Whether another writer's commit came first, so that they may be published once the table is opened again.
    pub conflict: bool,
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
}

impl DeltaSink {
    /// Looks at the table, if it is there, and whether rows of `schema` can go into it. `id` names a row for merging.
    ///
    /// # Errors
    /// A table that cannot be read, or whose columns are others.
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
        let mut schema = delta::for_delta(schema);
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
            let there = snapshot.metadata().partition_columns();
            if there != partition_by {
                let named = |names: &[String]| format!("[{}]", names.join(", "));
                let problem = format!(
                    "the table is partitioned by {}, and partition_by says {}; make it say the same, or replace the table \
                     with mode = \"overwrite\"",
                    named(there),
                    named(partition_by)
                );
                return Err(DeltaError::mistake(objects, problem));
            }
            schema = nullable_as(&schema, Some(snapshot.snapshot().read_schema().as_ref()));
        } else {
            // What has no NULL today may have one another night.
            schema = nullable_as(&schema, None);
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
        })
    }

    /// Whether there is no table yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.table.is_none()
    }

    /// Whether the rows are joined with those of the table.
    #[must_use]
    pub fn merges(&self) -> bool {
        self.mode == Mode::Merge && !self.is_new()
    }

    /// Names the version of the table of rejected rows that belongs to the rows of this one.
    #[must_use]
    pub fn with_rejected(self, version: Option<u64>) -> Self {
        Self { rejected: version, ..self }
    }

    /// Takes back what runs of the same pipeline and store have added to a table of rejected rows after the version
    /// `published`, which belongs to rows that were never committed. Where others have added rows too, all stay.
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
        let (restored, _) = restore
            .with_commit_properties(self.properties(None))
            .await
            .map_err(|e| DeltaError::new(&self.objects, &e))?;
        self.table = Some(restored);
        Ok(self)
    }

    /// The version that the run saw; none if there was no table.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.table.as_ref().and_then(DeltaTable::version)
    }

    /// Whether rows were appended under the run's key by the version that the run saw.
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

    /// The run of the same pipeline and store that has published after the version `before`, if one has.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn published_since(&self, before: Option<u64>) -> Result<Option<String>, DeltaError> {
        let Some(table) = &self.table else { return Ok(None) };
        let commits = delta::commits_since(&self.objects, table, before).await?;
        Ok(commits.iter().find(|commit| self.is_own(commit)).and_then(|commit| commit.get(delta::RUN).cloned()))
    }

    /// Whether a commit is of the same pipeline and store.
    fn is_own(&self, commit: &HashMap<String, String>) -> bool {
        commit.get(PIPELINE) == Some(&self.origin.pipeline) && commit.get(STORE) == Some(&self.origin.store)
    }

    /// The rows with the types of the table; a value that these cannot hold is an error of the stream.
    #[must_use]
    pub fn fitted(&self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let fitted = rows.map(move |batch: Result<RecordBatch, DataFusionError>| -> Result<_, DataFusionError> {
            let batch = batch?;
            let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| as_in_table(column, field));
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<Vec<_>, DataFusionError>>()?)?)
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), fitted))
    }

    /// Commits the rows of `rows`, which is scanned once.
    ///
    /// # Errors
    /// Rows that end with an error, a place that cannot be written, another writer's change; the table is as it was.
    pub async fn publish(
        self,
        context: &SessionContext,
        rows: Arc<dyn TableProvider>,
        properties: WriterProperties,
    ) -> Result<Committed, Unpublished> {
        let (commit, before) = (self.properties(self.rejected), self.version());
        let written = match self.table.clone() {
            Some(table) if self.mode == Mode::Merge => self.merge(table, context, rows, properties, commit).await,
            table => self.write(table, context, rows, properties, commit).await,
        };
        let table = match written {
            Ok(table) => table,
            // The commit may have been made, and its answer lost.
            Err(source) => match delta::has_committed(&self.objects, &self.origin.run, before).await {
                Ok(Some(table)) => table,
                looked => {
                    let known = looked.is_ok();
                    return Err(Unpublished { known, conflict: known && is_conflict(&source), source });
                }
            },
        };
        Ok(self.committed(&table))
    }

    fn committed(&self, table: &DeltaTable) -> Committed {
        let (_, bytes) = delta::size(&self.objects, table).unwrap_or_default();
        Committed { version: table.version().unwrap_or_default(), bytes }
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
            .with_commit_properties(commit);
        write = match self.mode {
            Mode::Overwrite => write.with_save_mode(SaveMode::Overwrite).with_schema_mode(SchemaMode::Overwrite),
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
        let same = self.id.iter().map(|name| of("target", name).eq(of("source", name)));
        let same = same.reduce(Expr::and).ok_or_else(|| DeltaTableError::generic("a merge needs an id"))?;
        let names: Vec<String> = self.schema.fields().iter().map(|field| field.name().clone()).collect();
        let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
        let (table, _) = table
            .merge(context.read_table(rows)?, same)
            .with_source_alias("source")
            .with_target_alias("target")
            // The rows can be read once, and so not to find the range of their ids first.
            .with_streaming(true)
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
        let said = [(delta::RUN, run), (PIPELINE, pipeline), (STORE, store)];
        let commit = CommitProperties::default().with_metadata(said.map(|(key, value)| (key.to_owned(), json!(value))));
        // A second attempt at a commit that was made after all has the same ones, and conflicts as well.
        let lineage = Transaction::new(format!("couplet-store/{store}/{pipeline}"), 1);
        let rejected = rejected.and_then(|version| i64::try_from(version).ok());
        let rejected = rejected.map(|version| Transaction::new(of_rejected(pipeline), version));
        let transactions = [lineage].into_iter().chain(self.key()).chain(rejected);
        let commit = commit.with_application_transactions(transactions.collect());
        // The library would add rows to a table that another writer has made meanwhile, without a look at its commits; and
        // what replaces rows, or is merged with them, is made of the version that was seen.
        if self.mode == Mode::Append && !self.is_new() { commit } else { commit.with_max_retries(0) }
    }

    /// The transaction by which rows that were appended under the run's key are known.
    fn key(&self) -> Option<Transaction> {
        let Origin { pipeline, key, .. } = &self.origin;
        let key = key.as_ref().filter(|_| self.mode == Mode::Append)?;
        Some(Transaction::new(format!("couplet/{pipeline}/{key}"), 1))
    }
}

/// The version of the table of rejected rows that belongs to what a pipeline has committed to a table, if there is one.
///
/// # Errors
/// A table that cannot be read.
pub async fn rejected_version(objects: &Objects, pipeline: &str) -> Result<Option<u64>, DeltaError> {
    let Some(table) = delta::open(objects, None).await? else { return Ok(None) };
    let failed = |e: DeltaTableError| DeltaError::new(objects, &e);
    let state = table.snapshot().map_err(failed)?;
    let version = state.transaction_version(table.log_store().as_ref(), of_rejected(pipeline)).await.map_err(failed)?;
    Ok(version.and_then(|version| u64::try_from(version).ok()))
}

/// The transaction whose version is that of the table of rejected rows.
fn of_rejected(pipeline: &str) -> String {
    format!("couplet-rejected/{pipeline}")
}

/// The keys in a commit's metadata that name the pipeline and its store.
const PIPELINE: &str = "couplet.pipeline";
const STORE: &str = "couplet.store";

/// Whether a commit was refused because another one came first.
fn is_conflict(error: &DeltaTableError) -> bool {
    match error {
        DeltaTableError::VersionAlreadyExists(_) => true,
        DeltaTableError::Transaction { source } => {
            matches!(source, TransactionError::CommitConflict(_) | TransactionError::MaxCommitAttempts(_))
        }
        _ => false,
    }
}

/// A column with the type that the table has for it.
fn as_in_table(column: &ArrayRef, field: &Field) -> Result<ArrayRef, DataFusionError> {
    let misfit = |problem: &dyn Display| {
        Err(DataFusionError::Execution(format!("column `{}` does not fit the table: {problem}", field.name())))
    };
    let nulls = column.logical_null_count();
    if !field.is_nullable() && nulls > 0 {
        return misfit(
            &"it is NULL in a row, and the table was made without NULL in it; COALESCE it in the source query, or replace \
              the table with mode = \"overwrite\"",
        );
    }
    if *field.data_type() == DataType::Null && nulls < column.len() {
        return misfit(
            &"the table was made with nothing but NULL in it, and holds nothing else; replace the table with mode = \
              \"overwrite\"",
        );
    }
    if column.data_type() == field.data_type() {
        return Ok(Arc::clone(column));
    }
    if *field.data_type() == DataType::Null {
        return Ok(new_null_array(&DataType::Null, column.len()));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, field.data_type(), &options).or_else(|e| misfit(&e))
}

/// The columns as the table has them, or any where there is none: whether they may be NULL, or must be.
fn nullable_as(schema: &Schema, table: Option<&Schema>) -> Schema {
    let fields = schema.fields().iter().map(|field| {
        let there = table.and_then(|table| table.field_with_name(field.name()).ok());
        let field = Field::clone(field).with_nullable(there.is_none_or(Field::is_nullable));
        let void = there.is_some_and(|there| *there.data_type() == DataType::Null);
        if void { field.with_data_type(DataType::Null) } else { field }
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// Which column is of a type that no Delta table holds, if one is.
fn types_problem(schema: &Schema) -> Option<String> {
    schema.fields().iter().find_map(|field| {
        let alone = Schema::new(vec![Arc::clone(field)]);
        let known: Result<StructType, _> = (&alone).try_into_kernel();
        known.err().map(|_| {
            format!(
                "column `{}` is {}, which no Delta table can hold; CAST it in the source query, to VARCHAR if need be",
                field.name(),
                field.data_type()
            )
        })
    })
}

/// What keeps rows from being put into folders by these columns, if anything does.
fn partitions_problem(schema: &Schema, partition_by: &[String]) -> Option<String> {
    let columns = || schema.fields().iter().map(|field| field.name().as_str());
    let missing = partition_by.iter().find(|name| schema.column_with_name(name).is_none());
    if let Some(missing) = missing {
        let mend = nearest_name(missing, columns()).map_or_else(
            || format!("select it in the source query, as in `SELECT …, '{{date}}' AS {missing}`"),
            |other| format!("did you mean `{other}`?"),
        );
        return Some(format!(
            "partition_by names `{missing}`, which is no column of the output (it has {}); {mend}",
            columns().collect::<Vec<_>>().join(", ")
        ));
    }
    let nested = schema.fields().iter().find(|f| partition_by.contains(f.name()) && f.data_type().is_nested());
    if let Some(field) = nested {
        return Some(format!("partition_by names `{}`, which is no single value: {}", field.name(), field.data_type()));
    }
    // The library writes it in escapes, and reads these as they are.
    let bytes = schema.fields().iter().find(|f| partition_by.contains(f.name()) && *f.data_type() == DataType::Binary);
    if let Some(field) = bytes {
        return Some(format!("partition_by names `{}`, which is bytes; name a column of texts", field.name()));
    }
    (partition_by.len() == schema.fields().len())
        .then(|| "partition_by names every column, and a file must have one; leave some out".to_owned())
}

/// Which column of the id is kept less exactly than it is, so that two ids could become one, if one is.
fn ids_problem(schema: &Schema, id: &[String]) -> Option<String> {
    let finer =
        |data_type: &DataType| matches!(data_type, DataType::Timestamp(TimeUnit::Nanosecond, _) | DataType::Date64);
    let field = schema.fields().iter().find(|field| id.contains(field.name()) && finer(field.data_type()))?;
    Some(format!(
        "rows are merged by `{}`, which is {}, and a Delta table has it less exactly; CAST it to BIGINT or VARCHAR in the \
         source query",
        field.name(),
        field.data_type()
    ))
}

/// What keeps rows of one schema out of a table of another.
fn differences(rows: &Schema, table: &Schema) -> Vec<String> {
    let table = delta::for_delta(table);
    let mut problems = Vec::new();
    for field in rows.fields() {
        match table.field_with_name(field.name()) {
            Err(_) => problems.push(format!("column `{}` is not in the table", field.name())),
            Ok(there) if there.data_type() != field.data_type() => problems.push(format!(
                "column `{}` is {} and in the table {}",
                field.name(),
                field.data_type(),
                there.data_type()
            )),
            Ok(_) => {}
        }
    }
    let missing = table.fields().iter().filter(|field| rows.field_with_name(field.name()).is_err());
    problems.extend(missing.map(|field| format!("the table's column `{}` is missing", field.name())));
    problems
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int32Array, UInt32Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn fitted(column: &ArrayRef, there: DataType, nullable: bool) -> Result<ArrayRef, String> {
        as_in_table(column, &Field::new("v", there, nullable)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_column_has_the_type_of_the_table_or_what_keeps_it_out_is_told_with_the_mend() {
        let large: ArrayRef = Arc::new(UInt32Array::from(vec![Some(4_000_000_000), None]));
        let as_there = fitted(&large, DataType::Int64, true).unwrap();
        assert_eq!(as_there.as_primitive::<Int64Type>().value(0), 4_000_000_000);
        let problem = fitted(&large, DataType::Int32, true).unwrap_err();
        assert!(problem.contains("column `v` does not fit the table: ") && problem.contains("4000000000"), "{problem}");
        let problem = fitted(&large, DataType::Int64, false).unwrap_err();
        assert!(problem.contains("made without NULL in it; COALESCE it in the source query"), "{problem}");
        // A table of nothing but NULL takes NULL in any form, and loses no value.
        let empty: ArrayRef = Arc::new(Int32Array::from(vec![None, None]));
        for empty in [empty, new_null_array(&DataType::Null, 2)] {
            assert_eq!(*fitted(&empty, DataType::Null, true).unwrap().data_type(), DataType::Null);
        }
        let problem = fitted(&large, DataType::Null, true).unwrap_err();
        assert!(problem.contains("nothing but NULL in it, and holds nothing else"), "{problem}");
    }
}
