//! Files become SQL tables: Parquet, delimited text, JSON lines and Arrow IPC; files, globs and folders.

mod arrow_lengths;
mod delimited;
pub mod diagnose;
mod encrypted;
mod files;
mod format;
mod measure;
mod named_by_place;
pub(crate) mod snapshot;
pub(crate) mod types;
mod versioned;

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, DataFusionError, TableReference};
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig};
use datafusion::datasource::physical_plan::parquet::transform_schema_to_view;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, cast};
use datafusion::prelude::{SessionContext, lit, ltrim, nullif};
use thiserror::Error;

use crate::config::{CsvOptions, Place, Table, TableFormat};
use crate::delta::{self, DeltaError};
use crate::objects::{ObjectsError, Trouble};
use crate::sink::runs::RunsError;
use crate::store::SourceFile;
use files::Files;
use format::file_format;
pub(crate) use format::{INT96, parquet};
pub(crate) use measure::known_rows;
pub use measure::{Measured, measure};
use named_by_place::Opened;
pub use named_by_place::enable_places;
pub(crate) use named_by_place::{is_place, takes_places};
use snapshot::Snapshot;
use types::Columns;
pub(crate) use versioned::columns_of_runs;

const BYTE_ORDER_MARK: &str = "\u{feff}";

/// A table that cannot be read.
#[derive(Debug, Error)]
#[error("table `{table}`: {problem}")]
pub struct TableError {
    /// The table's name in SQL.
    pub table: String,
    /// What is wrong, with the file.
    pub problem: String,
    /// Whether it may be right the next time though nobody mends the pipeline: the server could not be reached, or a file
    /// is broken, which whoever writes it may write again.
    pub passes: bool,
}

impl TableError {
    fn new(table: &Table, problem: impl Into<Problem>) -> Self {
        let Problem { text, passes } = problem.into();
        Self { table: table.name.clone(), problem: text, passes }
    }
}

/// What is wrong with a table's files.
#[derive(Debug)]
struct Problem {
    text: String,
    passes: bool,
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self { text, passes: false }
    }
}

impl From<DeltaError> for Problem {
    fn from(error: DeltaError) -> Self {
        Self { text: error.to_string(), passes: error.trouble == delta::Trouble::Unreachable }
    }
}

impl From<RunsError> for Problem {
    fn from(error: RunsError) -> Self {
        Self { text: error.to_string(), passes: error.problem.trouble == Trouble::Unreachable }
    }
}

impl From<ObjectsError> for Problem {
    fn from(error: ObjectsError) -> Self {
        Self { text: error.to_string(), passes: error.trouble == Trouble::Unreachable }
    }
}

/// Gives the session a table.
///
/// # Errors
/// Files that are missing, or that are not what the format says.
pub async fn register(context: &SessionContext, table: &Table) -> Result<(), TableError> {
    let provider = open(context, table).await?;
    let registered = register_under_its_name(context, &table.name, &provider);
    registered.map_err(|e| TableError::new(table, e.strip_backtrace()))
}

/// Opens a table of the session once more, whose files have been replaced.
///
/// # Errors
/// As [`register`].
pub(crate) async fn reopen(context: &SessionContext, table: &Table) -> Result<(), TableError> {
    for name in [&table.name, &table.name.to_ascii_lowercase()] {
        let removed = context.deregister_table(TableReference::bare(name.as_str()));
        removed.map_err(|e| TableError::new(table, e.strip_backtrace()))?;
    }
    register(context, table).await
}

async fn open(context: &SessionContext, table: &Table) -> Result<Arc<dyn TableProvider>, TableError> {
    let mut opened = open_once(context, table).await;
    if let Some(snapshot) = Snapshot::of(context) {
        for _ in 1..snapshot::ATTEMPTS {
            if opened.is_ok() || !snapshot.explains_failure() {
                break;
            }
            snapshot.renew();
            opened = open_once(context, table).await;
        }
    }
    opened
}

async fn open_once(context: &SessionContext, table: &Table) -> Result<Arc<dyn TableProvider>, TableError> {
    if let Some(provider) = versioned::provider(context, table).await.map_err(|e| TableError::new(table, e))? {
        return Ok(provider);
    }
    let files = Files::find(context, table).await.map_err(|e| TableError::new(table, e))?;
    if let Some(broken) = files.with_wrong_lengths(&table.format).await {
        return Err(TableError::new(table, Problem { text: broken.to_string(), passes: true }));
    }
    match listing(context, table, &files).await {
        Ok(provider) => Ok(provider),
        Err(Unreadable::Types(problem)) => {
            Err(TableError::new(table, format!("{problem}; write them alike, or read them as two tables with a CAST")))
        }
        Err(Unreadable::Files(e)) => Err(match files.first_broken(&table.format).await {
            Some(broken) => TableError::new(table, Problem { text: broken.to_string(), passes: true }),
            None => TableError::new(table, files.describe(&e, table)),
        }),
    }
}

/// Why the files of a table are not one.
enum Unreadable {
    /// A file cannot be read.
    Files(DataFusionError),
    /// No column holds what its columns hold.
    Types(String),
}

impl From<DataFusionError> for Unreadable {
    fn from(error: DataFusionError) -> Self {
        Self::Files(error)
    }
}

async fn listing(context: &SessionContext, table: &Table, files: &Files) -> Result<Arc<dyn TableProvider>, Unreadable> {
    let url = files.url.clone();
    let state = context.state();
    let mut options = ListingOptions::new(file_format(&table.format)).with_file_extension(&files.extension);
    let partitions = if table.partitions.is_empty() && url.is_collection() {
        options.infer_partitions(&state, &url).await?
    } else {
        table.partitions.clone()
    };
    let partitions: Vec<_> = partitions.into_iter().map(|name| (name, DataType::Utf8)).collect();
    options = options.with_table_partition_cols(partitions.clone());
    if !table.partitions.is_empty() {
        options.validate_partitions(&state, &url).await?;
    }
    let schema = match &table.format {
        TableFormat::Csv(options) => files.columns_of_text(options).await?,
        TableFormat::Parquet | TableFormat::Arrow => {
            let schemas = files.schemas(&state, &table.format).await?;
            let columns = Columns::of(&schemas).map_err(Unreadable::Types)?;
            let read = if table.format == TableFormat::Parquet {
                Arc::new(transform_schema_to_view(&columns.schema))
            } else {
                types::one_schema(&schemas).map_err(Unreadable::Types)?
            };
            let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(Arc::clone(&read));
            let provider: Arc<dyn TableProvider> = Arc::new(ListingTable::try_new(config)?);
            return Ok(presented(context, provider, &columns, &read, partitions.iter().map(|(name, _)| name))?);
        }
        _ => options.infer_schema(&state, &url).await?,
    };
    let marked = matches!(table.format, TableFormat::Csv(_)) && files.begin_with(BYTE_ORDER_MARK.as_bytes()).await;
    let schema = if marked { without_byte_order_mark(&schema) } else { schema };
    let TableFormat::Csv(csv) = &table.format else {
        let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(schema);
        return Ok(Arc::new(ListingTable::try_new(config)?));
    };
    // The reader knows what means NULL only while it tells the types.
    let read = if csv.null.is_some() { as_texts(&schema) } else { Arc::clone(&schema) };
    let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(read);
    let provider: Arc<dyn TableProvider> = Arc::new(ListingTable::try_new(config)?);
    // Without a header the mark is part of the first value.
    let is_marked = marked && !csv.header && schema.field(0).data_type().is_string();
    if !is_marked && csv.null.is_none() {
        return Ok(provider);
    }
    let columns = schema.fields().iter().enumerate().map(|(i, field)| value_of(field, csv, is_marked && i == 0));
    let columns = columns.chain(partitions.iter().map(|(name, _)| Expr::Column(Column::from_name(name))));
    Ok(context.read_table(provider)?.select(columns.collect::<Vec<_>>())?.into_view())
}

/// A table with its columns as SQL sees them, of one whose files are read as `read`.
fn presented<'a>(
    context: &SessionContext,
    provider: Arc<dyn TableProvider>,
    columns: &Columns,
    read: &Schema,
    partitions: impl Iterator<Item = &'a String>,
) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    if !columns.needs_view(read) {
        return Ok(provider);
    }
    let values = columns.expressions(read).chain(partitions.map(|name| Expr::Column(Column::from_name(name))));
    Ok(context.read_table(provider)?.select(values.collect::<Vec<_>>())?.into_view())
}

/// A column of delimited text without the mark before it, NULL where the text says so, in its type.
fn value_of(field: &Field, csv: &CsvOptions, is_marked: bool) -> Expr {
    let mut value = Expr::Column(Column::from_name(field.name()));
    if is_marked {
        value = ltrim(vec![value, lit(BYTE_ORDER_MARK)]);
    }
    if let Some(null) = &csv.null {
        value = nullif(value, lit(null.as_str()));
        if !field.data_type().is_string() && !field.data_type().is_null() {
            value = cast(value, field.data_type().clone());
        }
    }
    value.alias(field.name())
}

fn as_texts(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| Field::clone(field).with_data_type(DataType::Utf8));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// What may stand between the fields of a text of which the head is taken for one name.
pub(crate) fn delimiter_in(head: &str) -> Option<char> {
    head.chars().find(|char| [';', '\t', '|', ','].contains(char))
}

/// The place of a table of files that a plan reads and of which this file is, or would be, one.
pub(crate) fn that_reads(plan: &LogicalPlan, file: &Path) -> Result<Option<Place>, DataFusionError> {
    let file = Place::Local(file.to_owned());
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(TreeNodeRecursion::Continue) };
        let Ok(provider) = source_as_provider(&scan.source) else { return Ok(TreeNodeRecursion::Continue) };
        let Some(table) = provider.downcast_ref::<ListingTable>() else { return Ok(TreeNodeRecursion::Continue) };
        // Files of another ending in a folder are not read.
        let is_meant = file.name().ends_with(&table.options().file_extension);
        found = table.table_paths().iter().filter_map(files::local_place).find(|place| is_meant && place.covers(&file));
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Registers the table as it is written, and in lower case, which is what SQL makes of a name without quotation marks.
fn register_under_its_name(
    context: &SessionContext,
    name: &str,
    provider: &Arc<dyn TableProvider>,
) -> Result<(), DataFusionError> {
    let lower = name.to_ascii_lowercase();
    for name in [name, &lower].into_iter().take(if lower == name { 1 } else { 2 }) {
        context.register_table(TableReference::bare(name), Arc::clone(provider))?;
    }
    Ok(())
}

/// Reads the files of the tables, and of those that SQL named by their places, once more, to find the one that made a
/// query fail.
pub async fn first_broken(context: &SessionContext, tables: &[Table]) -> Option<diagnose::Broken> {
    for table in tables.iter().chain(&Opened::of(context)) {
        let files = Files::find(context, table).await.ok()?;
        if let Some(broken) = files.first_broken(&table.format).await {
            return Some(broken);
        }
    }
    None
}

/// What the tables' files are now: to notice whether they change.
///
/// # Errors
/// Files that cannot be listed.
pub async fn source_files(context: &SessionContext, tables: &[Table]) -> Result<Vec<SourceFile>, Vec<TableError>> {
    let mut all = Vec::new();
    for table in tables {
        let error = |problem: Problem| vec![TableError::new(table, problem)];
        // The version that is read is fixed when the table is opened, whatever happens to it afterwards.
        if !versioned::is_versioned(table).await.map_err(error)? {
            all.extend(Files::find(context, table).await.map_err(error)?.describe_all());
        }
    }
    Ok(all)
}

fn without_byte_order_mark(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let name = field.name().strip_prefix(BYTE_ORDER_MARK).unwrap_or(field.name());
        Field::clone(field).with_name(name)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
