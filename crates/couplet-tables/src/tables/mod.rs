//! Registers files as SQL tables: Parquet, delimited text, JSON Lines and Arrow IPC; single files, globs and folders.

mod arrow_lengths;
mod by_path;
mod csv;
mod definition;
mod delimited;
pub mod diagnose;
mod encrypted;
mod files;
mod format;
mod hive;
mod infer;
mod json;
mod measure;
mod provider;
mod skipped_files;
pub mod snapshot;
mod source_file;
mod text;
mod uri;
mod values;
mod versioned;

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::Schema;
use couplet_storage::objects::{ObjectsError, Trouble};
use couplet_storage::place::Place;
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, DataFusionError, TableReference};
use datafusion::datasource::physical_plan::parquet::transform_schema_to_view;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::prelude::SessionContext;
use thiserror::Error;

use crate::delta::DeltaError;
use crate::sink::runs::RunsError;
use crate::types::{self, Columns};
use by_path::Opened;
pub use by_path::enable_places;
pub use by_path::{is_place, takes_places};
pub use definition::{ColumnType, ColumnTypes, CsvOptions, Location, PREDICTIONS, Table, TableFormat};
use diagnose::Broken;
use files::Files;
use format::file_format;
pub use format::{INT96, format_of_name};
pub use measure::known_rows;
pub use measure::{Measured, measure};
pub use provider::FileTable;
use snapshot::Snapshot;
pub use source_file::SourceFile;
pub use text::TextSource;
pub use uri::{FormatName, check_name, infer, table_from_uri, table_of_format};
pub use versioned::columns_of_runs;

/// A table that cannot be read.
#[derive(Debug, Error)]
#[error("table `{table}`: {problem}")]
pub struct TableError {
    /// The table's name in SQL.
    pub table: String,
    /// The problem, naming the file.
    pub problem: String,
    /// The kind of problem.
    #[source]
    pub trouble: Trouble,
}

impl TableError {
    fn new(table: &Table, problem: impl Into<Problem>) -> Self {
        let Problem { text, trouble } = problem.into();
        Self { table: table.name.clone(), problem: text, trouble }
    }

    /// Returns true if a retry may help: the server could not be reached, or a file was replaced.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.trouble == Trouble::Unreachable
    }
}

/// A problem with a table's files.
#[derive(Debug)]
struct Problem {
    text: String,
    trouble: Trouble,
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self { text, trouble: Trouble::Other }
    }
}

impl From<DeltaError> for Problem {
    fn from(error: DeltaError) -> Self {
        Self { text: error.to_string(), trouble: error.trouble }
    }
}

impl From<RunsError> for Problem {
    fn from(error: RunsError) -> Self {
        Self { text: error.to_string(), trouble: error.problem.trouble }
    }
}

impl From<ObjectsError> for Problem {
    fn from(error: ObjectsError) -> Self {
        Self { text: error.to_string(), trouble: error.trouble }
    }
}

/// Registers a table in the session.
///
/// # Errors
/// Files that are missing or that are not in the declared format.
pub async fn register(context: &SessionContext, table: &Table) -> Result<(), TableError> {
    let provider = open(context, table).await?;
    let registered = register_in_both_cases(context, &table.name, &provider);
    registered.map_err(|e| TableError::new(table, e.strip_backtrace()))
}

/// Opens a registered table again after its files have been replaced.
///
/// # Errors
/// Those of [`register`].
pub async fn reopen(context: &SessionContext, table: &Table) -> Result<(), TableError> {
    for name in [&table.name, &table.name.to_ascii_lowercase()] {
        let removed = context.deregister_table(TableReference::bare(name.as_str()));
        removed.map_err(|e| TableError::new(table, e.strip_backtrace()))?;
    }
    register(context, table).await
}

/// Returns the tables of a session without duplicates: each is also registered in lower case.
#[must_use]
pub fn table_names(context: &SessionContext) -> Vec<String> {
    let schema = context.catalog("datafusion").and_then(|catalog| catalog.schema("public"));
    let mut names = schema.map(|schema| schema.table_names()).unwrap_or_default();
    names.sort();
    names.sort_by_key(|name| name.to_lowercase());
    names.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
    names
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
        if let Some(file) = snapshot.replaced().filter(|_| opened.is_err()) {
            let text = format!("{file} was replaced while it was read; run the same command again");
            return Err(TableError::new(table, Problem { text, trouble: Trouble::Unreachable }));
        }
    }
    opened
}

async fn open_once(context: &SessionContext, table: &Table) -> Result<Arc<dyn TableProvider>, TableError> {
    if let Some(provider) = versioned::provider(context, table).await.map_err(|e| TableError::new(table, e))? {
        return Ok(provider);
    }
    let files = Files::find(&context.runtime_env(), table).await.map_err(|e| TableError::new(table, e))?;
    let broken = files.first_with_wrong_lengths(&table.format).await.map_err(|e| TableError::new(table, e))?;
    if let Some(broken) = broken {
        return Err(TableError::new(table, broken.to_string()));
    }
    let provider = match listing(context, table, &files).await {
        Ok(provider) => provider,
        Err(Unreadable::Types(problem)) => {
            let problem = format!("{problem}; write them with one type, or read them as two tables with a CAST");
            return Err(TableError::new(table, problem));
        }
        Err(Unreadable::Files(e)) => {
            let broken = match broken_in(&e) {
                Some(broken) => Some(broken.clone()),
                None => files.first_broken(&table.format).await,
            };
            let problem = broken.map_or_else(|| files.describe(&e, table), |broken| broken.to_string().into());
            return Err(TableError::new(table, problem));
        }
    };
    let skipped = files.skipped.to_string();
    if !skipped.is_empty() {
        tracing::warn!("table `{}`: {}{skipped}", table.name, table.location.place);
    }
    Ok(provider)
}

/// The reason why the files of a table cannot be read as one table.
enum Unreadable {
    /// A file cannot be read.
    Files(DataFusionError),
    /// No common type holds the values of a column in all files.
    Types(String),
}

impl From<DataFusionError> for Unreadable {
    fn from(error: DataFusionError) -> Self {
        Self::Files(error)
    }
}

async fn listing(context: &SessionContext, table: &Table, files: &Files) -> Result<Arc<dyn TableProvider>, Unreadable> {
    if let Some(layout) = infer::layout(files, &table.format).await? {
        return Ok(Arc::new(FileTable::of_text(table, files, layout)?));
    }
    let schemas = files.schemas(&context.state(), &table.format).await?;
    let columns = Columns::of(&schemas).map_err(Unreadable::Types)?;
    let read = if table.format == TableFormat::Parquet {
        Arc::new(transform_schema_to_view(&columns.schema))
    } else {
        types::one_schema(&schemas).map_err(Unreadable::Types)?
    };
    let provider = FileTable::of_binary(table, files, file_format(&table.format), &read)?;
    let (read, partitions) = (Arc::clone(provider.file_schema()), provider.partition_names());
    Ok(presented(context, Arc::new(provider), &columns, &read, partitions.iter())?)
}

/// Projects a table whose files are read with the schema `read` to the columns that SQL sees.
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

/// Returns the broken file that a query error names.
#[must_use]
pub fn broken_in(error: &DataFusionError) -> Option<&Broken> {
    match error.find_root() {
        DataFusionError::External(error) => error.downcast_ref(),
        _ => None,
    }
}

/// Returns the first likely field delimiter in `head`, a header line that was read as a single column name.
pub(crate) fn delimiter_in(head: &str) -> Option<char> {
    head.chars().find(|char| [';', '\t', '|', ','].contains(char))
}

/// Returns the location of a file-based table in the plan that reads `file`, or would read it once it exists.
///
/// # Errors
/// A plan whose subqueries cannot be visited.
pub fn place_reading(plan: &LogicalPlan, file: &Path) -> Result<Option<Place>, DataFusionError> {
    let file = Place::Local(file.to_owned());
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(TreeNodeRecursion::Continue) };
        let Ok(provider) = source_as_provider(&scan.source) else { return Ok(TreeNodeRecursion::Continue) };
        let provider = &*provider;
        found = provider.downcast_ref::<FileTable>().and_then(|table| table.place_that_reads(&file));
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Registers the table under its name and under the lower-case name, because SQL folds unquoted names to lower case.
fn register_in_both_cases(
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

/// Rereads the files of the tables, and of the tables that SQL named by path, to find the one that made a query fail.
pub async fn first_broken(context: &SessionContext, tables: &[Table]) -> Option<Broken> {
    for table in tables.iter().chain(&Opened::of(context)) {
        let files = Files::find(&context.runtime_env(), table).await.ok()?;
        if let Some(broken) = files.first_broken(&table.format).await {
            return Some(broken);
        }
    }
    None
}

/// Returns the current versions of the tables that list their own files (Delta tables and folders of runs).
///
/// # Errors
/// Tables that cannot be read.
pub async fn source_versions(tables: &[Table]) -> Result<Vec<String>, Vec<TableError>> {
    let mut all = Vec::new();
    for table in tables {
        all.extend(versioned::version(table).await.map_err(|problem| vec![TableError::new(table, problem)])?);
    }
    Ok(all)
}

/// Describes the current files of the tables, so that later changes can be detected.
///
/// # Errors
/// Files that cannot be listed.
pub async fn source_files(context: &SessionContext, tables: &[Table]) -> Result<Vec<SourceFile>, Vec<TableError>> {
    let mut all = Vec::new();
    for table in tables {
        let error = |problem: Problem| vec![TableError::new(table, problem)];
        // Opening a versioned table fixes the version that is read; later changes do not affect it.
        if !versioned::is_versioned(table).await.map_err(error)? {
            all.extend(Files::find(&context.runtime_env(), table).await.map_err(error)?.describe_all());
        }
    }
    Ok(all)
}
