//! A Delta table as the sink: each run is one commit.
//!
//! The rows are written to data files first; the commit then names them in one log entry. Whoever reads meanwhile
//! reads the version before. A commit whose answer was lost is looked up by the run's id, which every commit carries.

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
use deltalake_core::kernel::transaction::CommitProperties;
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
}

/// A table that a run will commit to.
#[derive(Debug)]
pub struct DeltaSink {
    objects: Objects,
    table: Option<DeltaTable>,
    mode: Mode,
    partition_by: Vec<String>,
    id: Vec<String>,
    run: String,
    pipeline: String,
    schema: SchemaRef,
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
        pipeline: &str,
        run: &str,
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
            run: run.to_owned(),
            pipeline: pipeline.to_owned(),
            schema: Arc::new(schema),
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

    /// Which of these runs has appended what was made of these inputs, if one has.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub async fn published_by(&self, runs: &[String], inputs: &str) -> Result<Option<(String, Committed)>, DeltaError> {
        let Some(run) = delta::committed_by(&self.objects, runs, inputs).await? else { return Ok(None) };
        Ok(delta::open(&self.objects, None).await?.map(|table| (run, self.committed(&table))))
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

    /// Commits the rows of `rows`, which is scanned once; `inputs` tells what they were made of.
    ///
    /// # Errors
    /// Rows that end with an error, a place that cannot be written, another writer's change; the table is as it was.
    pub async fn publish(
        self,
        context: &SessionContext,
        rows: Arc<dyn TableProvider>,
        properties: WriterProperties,
        inputs: Option<&str>,
    ) -> Result<Committed, Unpublished> {
        let commit = self.properties(inputs);
        let before = self.table.as_ref().and_then(DeltaTable::version);
        let written = match self.table.clone() {
            Some(table) if self.mode == Mode::Merge => self.merge(table, context, rows, properties, commit).await,
            table => self.write(table, context, rows, properties, commit).await,
        };
        let table = match written {
            Ok(table) => table,
            // The commit may have been made, and its answer lost.
            Err(source) => match delta::has_committed(&self.objects, &self.run, before).await {
                Ok(Some(table)) => table,
                looked => return Err(Unpublished { source, known: looked.is_ok() }),
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
            .with_table_name(self.pipeline.clone())
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

    fn properties(&self, inputs: Option<&str>) -> CommitProperties {
        // With a transaction of the application's, a second attempt at a commit that was made after all is a conflict.
        let app = format!("couplet/{}/{}", self.pipeline, self.run);
        let said =
            [(delta::RUN, Some(&*self.run)), ("couplet.pipeline", Some(&self.pipeline)), (delta::INPUTS, inputs)];
        let said = said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?))));
        CommitProperties::default().with_application_transaction(Transaction::new(app, 1)).with_metadata(said)
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
