//! Opens the output table of the reported run for SQL.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use couplet_storage::objects::Objects;
use couplet_tables::predict::Models;
use couplet_tables::session::{self, Resources};
use couplet_tables::sink::runs;
use couplet_tables::store::RunRecord;
use couplet_tables::tables::{Location, PREDICTIONS, Table, TableFormat};
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;

use crate::config::{Pipeline, Scoring, SinkFormat};
use crate::error::Error;
use crate::run::{self, readable_place};

/// The output rows of a run.
pub(super) struct Output {
    context: SessionContext,
    origin: String,
    pub(super) schema: SchemaRef,
    _resources: Resources,
}

/// Opens the table that a run published. The inner error is the reason why its rows cannot be shown any more.
pub(super) async fn of_run(
    pipeline: &Pipeline,
    scoring: &Scoring,
    record: &RunRecord,
    is_newest: bool,
) -> Result<Result<Output, String>, Error> {
    let sink = &scoring.sink;
    let location = &sink.location;
    let shown = readable_place(&location.place);
    let (place, format) = match sink.format {
        // The newest version has the rows of the newest run.
        SinkFormat::Delta if record.output_version.is_none() && !is_newest => {
            return Ok(Err(format!(
                "The version of {shown} that this run published is not recorded, so there are no rows to show."
            )));
        }
        SinkFormat::Delta => (location.place.clone(), TableFormat::Delta { version: record.output_version }),
        SinkFormat::Parquet if sink.is_one_file() => {
            if !is_newest {
                return Ok(Err(format!(
                    "A later run has replaced {shown}, so there are no rows of this run to show; a Delta table or a \
                     folder of runs keeps them."
                )));
            }
            let Some(file) = Objects::open(&location.place)?.head().await? else {
                return Ok(Err(format!("{shown} no longer exists, so there are no rows to show.")));
            };
            // A run that was killed, another pipeline or a person may have replaced the file since.
            if record.output_bytes.is_some_and(|bytes| bytes != file.size) {
                return Ok(Err(format!(
                    "{shown} is not the file that this run published, so there are no rows of this run to show."
                )));
            }
            (location.place.clone(), TableFormat::Parquet)
        }
        SinkFormat::Parquet => {
            let all = runs::all(&Objects::open(&location.place)?.lock_place()).await?;
            let Some(manifest) = all.iter().find(|manifest| manifest.run_id == record.run) else {
                return Ok(Err(format!(
                    "The folder of this run is no longer in {shown}, so there are no rows to show."
                )));
            };
            // The trailing slash marks a folder, since the name contains dots.
            (location.place.join(&format!("{}/", manifest.folder())), TableFormat::Parquet)
        }
    };
    let table = Table {
        name: PREDICTIONS.to_owned(),
        location: Location { written: location.written.clone(), place },
        format,
        partitions: Vec::new(),
    };
    let pool = run::pool(Some(1))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let models = Arc::new(Models::new(pool, std::env::current_dir().unwrap_or_default()));
    let resources = run::resources(&pipeline.run)?;
    let context = match session::open(&[table], models, pipeline.run.window, cores, &resources).await {
        Ok(context) => context,
        Err(errors) => {
            let errors = errors.into_iter().map(|error| error.problem).collect::<Vec<_>>().join("; ");
            return Ok(Err(format!("The table of this run can no longer be read: {errors}")));
        }
    };
    let origin = format!("the rows of {shown}");
    let failed = |e: DataFusionError| Error::sql(&origin, &e, Some(&context));
    let frame = context.table(PREDICTIONS).await.map_err(failed)?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    Ok(Ok(Output { context, origin, schema, _resources: resources }))
}

impl Output {
    /// Executes a query and returns its rows.
    pub(super) async fn query(&self, sql: &str) -> Result<Vec<RecordBatch>, Error> {
        let frame = self.context.sql(sql).await.map_err(|e| self.failed(&e))?;
        frame.collect().await.map_err(|e| self.failed(&e))
    }

    /// Converts an error of a query over the output.
    pub(super) fn failed(&self, error: &DataFusionError) -> Error {
        Error::sql(&self.origin, error, Some(&self.context))
    }
}

/// Quotes a column name for SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string literal for SQL.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
