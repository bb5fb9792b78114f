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

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::Column;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use deltalake_core::delta_datafusion::DataFusionMixins;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::transaction::{CommitProperties, TransactionError};
use deltalake_core::kernel::{StructType, Transaction};
use deltalake_core::operations::write::SchemaMode;
use deltalake_core::protocol::SaveMode;
use deltalake_core::{DeltaTable, DeltaTableError, TableProperty};
use parquet::file::properties::WriterProperties;
use serde_json::json;

use super::atomic::NotDurable;
use super::fit;
use crate::delta::{self, DeltaError};
use crate::files::nearest_name;
use crate::objects::{Objects, unconfirmed_in};
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
    /// What to say where they were committed after all, and the disk did not confirm it.
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
    /// Whether the table has nothing but NULL so far in a column that gets values now.
    gains_types: bool,
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
        let there = table.as_ref().filter(|_| mode != Mode::Overwrite).map(DeltaTable::snapshot).transpose();
        let there = there.map_err(|e| DeltaError::new(objects, &e))?.map(|snapshot| snapshot.snapshot().read_schema());
        let (mut schema, mut gains_types) = (delta::for_delta(&typed_as(schema, there.as_deref())), false);
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
            let there = delta::for_delta(&snapshot.snapshot().read_schema());
            schema = as_in_table(&schema, Some(&there));
            let is_void = |name: &String| there.field_with_name(name).is_ok_and(|field| field.data_type().is_null());
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
        match restore.with_commit_properties(self.properties(None)).await {
            Ok((restored, _)) => self.table = Some(restored),
            Err(error) if misses_a_file(&error) => tracing::warn!(
                "{}: a VACUUM has removed files of version {version}, so that rows of a run that did not come to its end \
                 stay until their ids are rejected again ({error})",
                self.objects
            ),
            Err(error) => return Err(DeltaError::new(&self.objects, &error)),
        }
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
        fit::fitted(rows, &self.schema)
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
            // The commit may have been made, and its answer lost.
            Err(source) => match delta::has_committed(&self.objects, &self.origin.run, before).await {
                Ok(Some(table)) => match unconfirmed_in(&source) {
                    Some(error) => {
                        let not_durable = Some(NotDurable::new(error).to_string());
                        return Err(Unpublished { not_durable, ..Unpublished::new(source, true) });
                    }
                    None => table,
                },
                looked => return Err(Unpublished::new(source, looked.is_ok())),
            },
        };
        Ok(self.committed(&table))
    }

    fn committed(&self, table: &DeltaTable) -> Committed {
        let (_, bytes) = delta::size(&self.objects, table).unwrap_or_default();
        Committed { version: table.version().unwrap_or_default(), bytes }
    }

    /// Has a table name the columns whose statistics are exact, so that readers pass over those that its log has of others.
    async fn with_exact_statistics(&self, table: DeltaTable) -> Result<DeltaTable, DeltaTableError> {
        let (key, names) = (TableProperty::DataSkippingStatsColumns.as_ref(), exact_statistics(&self.schema));
        if table.snapshot()?.metadata().configuration().get(key) == Some(&names) {
            return Ok(table);
        }
        // What another writer has committed since the table was seen must not be passed over here.
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
        // deltalake skips files by the range of an id that it finds in an equation; the log may not have it exactly.
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
            // The rows can be read once, and so not to find the range of their ids first.
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

/// Whether a version cannot be restored because one of its files is gone; the library's own error is private.
fn misses_a_file(error: &DeltaTableError) -> bool {
    matches!(error, DeltaTableError::GenericError { source } if source.to_string().starts_with("Find missing file"))
}

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

/// The columns with the types that the table has, where they fit into those: whether they may be NULL too. A column of
/// nothing but NULL has no type yet.
fn as_in_table(schema: &Schema, table: Option<&Schema>) -> Schema {
    let fields = schema.fields().iter().map(|field| {
        let there = table.and_then(|table| table.field_with_name(field.name()).ok());
        // What has no NULL today may have one another night.
        let field = Field::clone(field).with_nullable(there.is_none_or(Field::is_nullable));
        match there.map(Field::data_type).filter(|there| !there.is_null()) {
            Some(there) => field.with_data_type(there.clone()),
            None => field,
        }
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// The columns with the types of a table for what is NULL in every row within lists and structs.
fn typed_as(schema: &Schema, table: Option<&Schema>) -> Schema {
    fn nested(data_type: &DataType, there: &DataType) -> DataType {
        let field = |field: &Field, there: &Field| {
            Arc::new(field.clone().with_data_type(match (field.data_type(), there.data_type()) {
                (DataType::Null, there) => there.clone(),
                (data_type, there) => nested(data_type, there),
            }))
        };
        match (data_type, there) {
            (
                DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _),
                DataType::List(there),
            ) => DataType::List(field(item, there)),
            (DataType::Struct(fields), DataType::Struct(there)) => {
                let typed = fields.iter().map(|of_rows| match there.find(of_rows.name()) {
                    Some((_, there)) => field(of_rows, there),
                    None => Arc::clone(of_rows),
                });
                DataType::Struct(typed.collect())
            }
            _ => data_type.clone(),
        }
    }
    let fields =
        schema.fields().iter().map(|field| match table.and_then(|table| table.field_with_name(field.name()).ok()) {
            Some(there) => Arc::new(Field::clone(field).with_data_type(nested(field.data_type(), there.data_type()))),
            None => Arc::clone(field),
        });
    Schema::new(fields.collect::<Vec<_>>())
}

/// The columns whose least and greatest values the log of a table has, as its property names them: those that deltalake
/// writes exactly. Of decimals it writes 64-bit floats, of timestamps milliseconds, so that the greatest is too small; of
/// floats it leaves NaN out, and far dates make it panic. Texts are cut to bounds, as every reader expects.
fn exact_statistics(schema: &Schema) -> String {
    let is_exact = |data_type: &DataType| match data_type {
        DataType::Boolean => true,
        other => other.is_integer() || other.is_string(),
    };
    // The library takes a name for that of any column within others too, and other names must be quoted.
    let is_plain = |name: &str| name.chars().all(|char| char == '_' || char.is_ascii_alphanumeric());
    let is_within = |name: &str| schema.fields().iter().any(|field| has_within(field.data_type(), name));
    let exact = schema.fields().iter().filter(|field| is_exact(field.data_type()));
    let names = exact.map(|field| field.name().as_str()).filter(|name| is_plain(name) && !is_within(name));
    names.collect::<Vec<_>>().join(",")
}

/// Whether a struct has a column of that name, at any depth.
fn has_within(data_type: &DataType, name: &str) -> bool {
    let DataType::Struct(fields) = data_type else { return false };
    fields.iter().any(|field| field.name() == name || has_within(field.data_type(), name))
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
            Ok(there) if !fit::goes_into(field.data_type(), there.data_type()) && !there.data_type().is_null() => {
                problems.push(format!(
                    "column `{}` is {} and in the table {}",
                    field.name(),
                    field.data_type(),
                    there.data_type()
                ));
            }
            Ok(_) => {}
        }
    }
    let missing = table.fields().iter().filter(|field| rows.field_with_name(field.name()).is_err());
    problems.extend(missing.map(|field| format!("the table's column `{}` is missing", field.name())));
    problems
}
