//! Files become SQL tables: Parquet, delimited text, JSON lines and Arrow IPC; files, globs and folders.

mod csv;
mod delimited;
pub mod diagnose;
mod files;
mod format;
mod hive;
mod infer;
mod json;
mod left_out;
mod measure;
mod named_by_place;
mod provider;
mod text;
mod values;
mod versioned;

use std::path::Path;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, TableReference};
use datafusion::datasource::listing::ListingTable;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use thiserror::Error;

use crate::config::{Place, Table};
use crate::delta::{self, DeltaError};
use crate::objects::{ObjectsError, Trouble};
use crate::sink::runs::RunsError;
use crate::store::SourceFile;
use diagnose::Broken;
use files::Files;
use format::file_format;
pub(crate) use format::format_of_name;
pub(crate) use measure::known_rows;
pub use measure::{Measured, measure};
use named_by_place::Opened;
pub use named_by_place::enable_places;
pub(crate) use named_by_place::{is_place, takes_places};
use provider::FileTable;

/// A table that cannot be read.
#[derive(Debug, Error)]
#[error("table `{table}`: {problem}")]
pub struct TableError {
    /// The table's name in SQL.
    pub table: String,
    /// What is wrong, with the file.
    pub problem: String,
    /// Whether a retry may help: the server could not be reached.
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

async fn open(context: &SessionContext, table: &Table) -> Result<Arc<dyn TableProvider>, TableError> {
    if let Some(provider) = versioned::provider(context, table).await.map_err(|e| TableError::new(table, e))? {
        return Ok(provider);
    }
    let files = Files::find(&context.runtime_env(), table).await.map_err(|e| TableError::new(table, e))?;
    let provider = match listing(context, table, &files).await {
        Ok(provider) => provider,
        Err(e) => {
            let broken = match broken_in(&e) {
                Some(broken) => Some(broken.clone()),
                None => files.first_broken(&table.format).await,
            };
            let problem = broken.map_or_else(|| files.describe(&e, table), |broken| broken.to_string().into());
            return Err(TableError::new(table, problem));
        }
    };
    let left_out = files.left_out.to_string();
    if !left_out.is_empty() {
        tracing::warn!("table `{}`: {}{left_out}", table.name, table.location.place);
    }
    Ok(provider)
}

async fn listing(
    context: &SessionContext,
    table: &Table,
    files: &Files,
) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    if let Some(layout) = infer::layout(files, &table.format).await? {
        return Ok(Arc::new(FileTable::of_text(table, files, layout)?));
    }
    let format = file_format(&table.format);
    let schema = format.infer_schema(&context.state(), &files.objects.store, &files.list).await?;
    Ok(Arc::new(FileTable::of_binary(table, files, format, &schema)?))
}

/// The file that an error of a query names as broken.
pub(crate) fn broken_in(error: &DataFusionError) -> Option<&Broken> {
    match error.find_root() {
        DataFusionError::External(error) => error.downcast_ref(),
        _ => None,
    }
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
        let provider = &*provider;
        found = if let Some(table) = provider.downcast_ref::<FileTable>() {
            table.place_that_reads(&file)
        } else if let Some(table) = provider.downcast_ref::<ListingTable>() {
            // The files of a run.
            table.table_paths().iter().filter_map(files::local_place).find(|place| place.covers(&file))
        } else {
            None
        };
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
pub async fn first_broken(context: &SessionContext, tables: &[Table]) -> Option<Broken> {
    for table in tables.iter().chain(&Opened::of(context)) {
        let files = Files::find(&context.runtime_env(), table).await.ok()?;
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
            all.extend(Files::find(&context.runtime_env(), table).await.map_err(error)?.describe_all());
        }
    }
    Ok(all)
}
