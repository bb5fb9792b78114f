//! Table sizes, as far as they are known without reading rows: from Parquet footers, the log of a Delta table, the
//! manifests of runs, and the file listing for everything else.

use couplet_storage::objects::Objects;
use datafusion::common::stats::Precision;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::prelude::SessionContext;
use serde::Serialize;

use super::files::Files;
use super::{Table, TableFormat};
use super::{TableError, versioned};
use crate::delta;
use crate::sink::runs;

/// The size of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// The table's name in SQL.
    pub table: String,
    /// The location, as messages name it.
    pub place: String,
    /// The kind of table: `Parquet`, `CSV`, `Delta`, …
    pub format: &'static str,
    /// The number of files.
    pub files: u64,
    /// The total size of the files in bytes.
    pub bytes: u64,
    /// The number of rows; none if only reading the table would tell.
    pub rows: Option<u64>,
}

/// Measures a table registered in the session.
///
/// # Errors
/// Files that cannot be listed; footers or logs that cannot be read.
pub async fn measure(context: &SessionContext, table: &Table) -> Result<Measured, TableError> {
    let error = |problem: String| TableError::new(table, problem);
    let place = table.location.place.to_string();
    let measured =
        |format, files, bytes, rows| Measured { table: table.name.clone(), place, format, files, bytes, rows };
    if versioned::is_versioned(table).await.map_err(|e| TableError::new(table, e))? {
        let objects = Objects::open(&table.location.place).map_err(|e| TableError::new(table, e))?;
        let version = match table.format {
            TableFormat::Delta { version } => version,
            _ => None,
        };
        if let Some(delta) = delta::open(&objects, version).await.map_err(|e| error(e.to_string()))? {
            let (rows, bytes) = delta::size(&objects, &delta).map_err(|e| error(e.to_string()))?;
            let files = delta.snapshot().map_or(0, |snapshot| snapshot.log_data().into_iter().count());
            return Ok(measured("Delta", files as u64, bytes, Some(rows)));
        }
        let manifests = versioned::manifests(&objects, table).await.map_err(|e| TableError::new(table, e))?;
        let files = manifests.iter().map(|manifest| manifest.files.len() as u64).sum();
        let rows = manifests.iter().map(|manifest| manifest.rows).sum();
        return Ok(measured("a folder of runs", files, manifests.iter().map(runs::Manifest::bytes).sum(), Some(rows)));
    }
    let files = Files::find(&context.runtime_env(), table).await.map_err(|e| TableError::new(table, e))?;
    let (mut count, mut bytes) = (0, 0);
    for file in files.describe_all() {
        count += 1;
        bytes += file.bytes;
    }
    let rows = match table.format {
        TableFormat::Parquet => rows_by_footers(context, &table.name).await,
        _ => None,
    };
    Ok(measured(table.format.title(), count, bytes, rows))
}

/// Returns the row count from the statistics of a scan, which come from the footers.
async fn rows_by_footers(context: &SessionContext, name: &str) -> Option<u64> {
    let provider = context.table_provider(datafusion::common::TableReference::bare(name)).await.ok()?;
    let scan = provider.scan(&context.state(), Some(&vec![]), &[], None).await.ok()?;
    known_rows(scan.as_ref())
}

/// Returns the row count of a plan if its statistics have the exact number.
pub fn known_rows(plan: &dyn ExecutionPlan) -> Option<u64> {
    match StatisticsContext::new().compute(plan, &StatisticsArgs::new()).ok()?.num_rows {
        Precision::Exact(rows) => Some(rows as u64),
        _ => None,
    }
}
