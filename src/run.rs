//! `couplet run`: the recipe of a pipeline, from its file to its published table.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::StreamExt;

use crate::config::{self, Device, Pipeline, Query, Table};
use crate::error::Error;
use crate::predict::{Models, prediction_fields, predictions_to_array};
use crate::progress::{Progress, Style, grouped};
use crate::report::Report;
use crate::scorer::{
    Counts, DeviceSetting, Pool, Precision, PrecisionSetting, Prediction, Rejection, Scorer, ScorerOptions,
};
use crate::session;
use crate::sink::ParquetSink;
use crate::source::{OUTPUT_COLUMNS, Source};
use crate::tables;

/// Windows that are scored at once: while the last batches of one run, the next is tokenized.
const WINDOWS_UNDER_WAY: usize = 2;

/// What there is of an output that was not there before the run.
const NOTHING_WRITTEN: &str = "nothing was written";

/// Runs a pipeline until it is done or `stop` is; a run that does not end well leaves the sink as it was.
///
/// # Errors
/// Whatever is wrong with the pipeline's tables, query, model or sink; [`Error::Interrupted`] after `stop`.
pub async fn run(
    pipeline: &Pipeline,
    variables: &BTreeMap<String, String>,
    style: Style,
    stop: impl Future<Output = ()>,
) -> Result<Report, Error> {
    let began = Instant::now();
    let mut stop = std::pin::pin!(stop);
    let Prepared { context, source, scorer, rows } = tokio::select! {
        biased;
        () = &mut stop => return Err(interrupted(pipeline, "before the first row was scored".into())),
        prepared = prepare(pipeline, variables) => prepared?,
    };
    let scoring = Instant::now();
    let progress = Progress::start(style, &scorer, rows);
    let output = match score(pipeline, &context, source, &scorer, rows, stop).await {
        Ok(output) => output,
        Err(error) => return Err(blame(&context, &pipeline.tables, error, NOTHING_WRITTEN).await),
    };
    drop(progress);
    let scoring = scoring.elapsed();
    check(pipeline, &scorer.tally().counts(), rows, output.rows)?;
    let labels = output.label_counts(&scorer);
    let output_bytes = output.sink.publish()?;
    Ok(Report {
        pipeline: pipeline.name.clone(),
        model: readable(&pipeline.model.location.path).display().to_string(),
        precision: scorer.precision(),
        fingerprint: scorer.model().fingerprint.as_str().to_owned(),
        counts: scorer.tally().counts(),
        labels,
        elapsed: began.elapsed(),
        scoring,
        output: readable(&pipeline.sink.location.path),
        output_bytes,
    })
}

/// All that a run needs before its first row.
struct Prepared {
    context: SessionContext,
    source: Source,
    scorer: Scorer,
    rows: u64,
}

/// Opens the tables, plans the query, loads the model, counts the rows: all that can turn out wrong before the work.
async fn prepare(pipeline: &Pipeline, variables: &BTreeMap<String, String>) -> Result<Prepared, Error> {
    let sql = source_sql(pipeline, variables)?;
    let models = Arc::new(models_of(pipeline, pool(pipeline.run.threads)?, &folder_of(&pipeline.path)));
    // One partition keeps the rows in the order of the files; the cores belong to the model.
    let context =
        session::open(&pipeline.tables, Arc::clone(&models), pipeline.run.window, 1).await.map_err(Error::Tables)?;
    let source =
        Source::open(&context, &sql, &pipeline.source.id, &pipeline.source.text, pipeline.source.label.as_deref())
            .await
            .map_err(|e| Error::source(&pipeline.path, e, &context))?;
    let scorer = models.get(&model_name(pipeline)).await?;
    match source.count_rows(&pipeline.source.id).await {
        Ok(rows) => Ok(Prepared { context, source, scorer, rows }),
        Err(error) => {
            let error = Error::source(&pipeline.path, error, &context);
            Err(blame(&context, &pipeline.tables, error, NOTHING_WRITTEN).await)
        }
    }
}

/// Scores all windows into the sink, which is not published yet.
async fn score(
    pipeline: &Pipeline,
    context: &SessionContext,
    source: Source,
    scorer: &Scorer,
    rows: u64,
    stop: impl Future<Output = ()>,
) -> Result<Output, Error> {
    let mut output = Output::create(pipeline, source.schema(), scorer)?;
    let query_failed =
        |e: DataFusionError| Error::sql(format!("{}: the source query", pipeline.path.display()), &e, Some(context));
    let windows = source.windows(pipeline.run.window).await.map_err(|e| Error::source(&pipeline.path, e, context))?;
    let predictions = windows
        .map(|window| async {
            let (batch, window) = window.map_err(query_failed)?;
            let outcomes = scorer.score(window).await?;
            Ok::<_, Error>((batch, outcomes))
        })
        .buffered(WINDOWS_UNDER_WAY);
    let mut predictions = std::pin::pin!(predictions);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => {
                let counts = scorer.tally().counts();
                let done = grouped(rows.min(counts.scored + counts.remembered));
                return Err(interrupted(pipeline, format!("after scoring {done} of {} rows", grouped(rows))));
            }
            next = predictions.next() => match next {
                Some(window) => {
                    let (batch, outcomes) = window?;
                    output.write(&batch, &outcomes, scorer)?;
                }
                None => return Ok(output),
            },
        }
    }
}

/// What is left when a run is interrupted: the output of the one before.
fn interrupted(pipeline: &Pipeline, after: String) -> Error {
    let path = &pipeline.sink.location.path;
    let kept = if path.exists() {
        format!("{} is as it was before", readable(path).display())
    } else {
        NOTHING_WRITTEN.to_owned()
    };
    Error::Interrupted { after, kept: format!("{kept}. Run the same command again to score all rows") }
}

/// The table in the making.
struct Output {
    sink: ParquetSink,
    schema: SchemaRef,
    rows: u64,
    labels: Vec<u64>,
}

impl Output {
    fn create(pipeline: &Pipeline, source: &Schema, scorer: &Scorer) -> Result<Self, Error> {
        let predicted = prediction_fields();
        let predicted =
            predicted.iter().map(|field| (field.data_type().clone(), true)).chain([(DataType::Utf8, false)]);
        let added = OUTPUT_COLUMNS
            .iter()
            .zip(predicted)
            .map(|(name, (data_type, nullable))| Field::new(*name, data_type, nullable));
        let fields = source.fields().iter().map(|field| Field::clone(field)).chain(added);
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let metadata = [
            ("couplet.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("couplet.pipeline", pipeline.name.clone()),
            ("couplet.model", scorer.model().fingerprint.as_str().to_owned()),
            ("couplet.model_uri", pipeline.model.location.path.display().to_string()),
            ("couplet.max_length", scorer.max_length().to_string()),
            ("couplet.precision", scorer.precision().to_string()),
        ];
        let sink = ParquetSink::create(&pipeline.sink.location.path, &schema, &metadata)?;
        Ok(Self { sink, schema, rows: 0, labels: vec![0; scorer.model().config.labels.len()] })
    }

    fn write(
        &mut self,
        batch: &RecordBatch,
        outcomes: &[Result<Prediction, Rejection>],
        scorer: &Scorer,
    ) -> Result<(), Error> {
        for label in outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()?.label) {
            self.labels[label] += 1;
        }
        let (_, predicted, _) = predictions_to_array(outcomes, &scorer.model().config).into_parts();
        let model: ArrayRef = Arc::new(StringArray::from(vec![scorer.model().fingerprint.to_string(); outcomes.len()]));
        let columns = batch.columns().iter().cloned().chain(predicted).chain([model]).collect();
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|e| Error::sql("the output table", &DataFusionError::from(e), None))?;
        self.rows += rows.num_rows() as u64;
        Ok(self.sink.write(&rows)?)
    }

    fn label_counts(&self, scorer: &Scorer) -> Vec<(String, u64)> {
        scorer.model().config.labels.iter().cloned().zip(self.labels.iter().copied()).collect()
    }
}

/// Rows in are rows out, and not too many of them are errors.
fn check(pipeline: &Pipeline, counts: &Counts, read: u64, written: u64) -> Result<(), Error> {
    if read != written {
        return Err(Error::RowsLost { read, written });
    }
    let (rejected, max_errors) = (counts.rejected_rows(), pipeline.score.max_errors);
    if rejected as f64 > max_errors * read as f64 {
        let kinds = Rejection::KINDS.iter().zip(counts.rejected).filter(|(_, n)| *n > 0);
        let kinds = kinds.map(|(kind, n)| format!("{n} with {kind}")).collect::<Vec<_>>().join(", ");
        return Err(Error::TooManyErrors { rejected, rows: read, kinds, max_errors });
    }
    Ok(())
}

/// The file and the place that made the execution of a query fail, if there is one.
pub async fn blame(context: &SessionContext, tables: &[Table], error: Error, kept: &'static str) -> Error {
    match &error {
        Error::Sql { mistake: false, .. } => match tables::first_broken(context, tables).await {
            Some(broken) => Error::BrokenFile { broken, kept },
            None => error,
        },
        _ => error,
    }
}

/// The text of the source query, its variables replaced.
///
/// # Errors
/// A SQL file that cannot be read, variables that do not fit it.
pub fn source_sql(pipeline: &Pipeline, variables: &BTreeMap<String, String>) -> Result<String, Error> {
    let location = match &pipeline.source.query {
        Query::Sql(sql) => return Ok(sql.clone()),
        Query::File(location) => location,
    };
    let path = &location.path;
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::Usage(format!("{}: source.file: cannot read {}: {e}", pipeline.path.display(), path.display()))
    })?;
    let (sql, used) =
        config::substitute(&text, variables).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
    match pipeline.unused_variables.iter().find(|name| !used.contains(name.as_str())) {
        Some(unused) => Err(Error::Usage(format!(
            "--var {unused}=… is used neither in {} nor in {}",
            pipeline.path.display(),
            path.display()
        ))),
        None => Ok(sql),
    }
}

/// Starts the inference threads.
///
/// # Errors
/// The operating system refused a thread.
pub fn pool(threads: Option<usize>) -> Result<Pool, Error> {
    Pool::new(threads).map_err(|error| Error::Io { context: "starting the inference threads".into(), error })
}

/// A set of models in which the pipeline's own runs as the pipeline says.
#[must_use]
pub fn models_of(pipeline: &Pipeline, pool: Pool, base: &Path) -> Models {
    let options = ScorerOptions {
        max_length: Some(pipeline.model.max_length),
        batch_tokens: pipeline.run.batch_tokens,
        precision: match pipeline.model.precision {
            config::Precision::Auto => PrecisionSetting::Auto,
            config::Precision::F32 => PrecisionSetting::Of(Precision::F32),
            config::Precision::Int16 => PrecisionSetting::Of(Precision::Int16),
            config::Precision::F16 => PrecisionSetting::Of(Precision::F16),
            config::Precision::Bf16 => PrecisionSetting::Of(Precision::Bf16),
        },
        device: match pipeline.model.device {
            Device::Auto => DeviceSetting::Auto,
            Device::Cpu => DeviceSetting::Cpu,
            Device::Cuda(ordinal) => DeviceSetting::Cuda(ordinal),
            Device::Metal => DeviceSetting::Metal,
        },
    };
    Models::new(pool, base.to_owned()).with_model_options(&pipeline.model.location.path, options)
}

/// The path as a person at this folder would write it.
fn readable(path: &Path) -> PathBuf {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    match here.ok().and_then(|here| canonical.strip_prefix(here).ok()) {
        Some(relative) => relative.to_owned(),
        None => canonical,
    }
}

/// The name under which the pipeline's own model is asked for: one that no base folder changes.
fn model_name(pipeline: &Pipeline) -> String {
    let path = &pipeline.model.location.path;
    std::path::absolute(path).unwrap_or_else(|_| path.clone()).to_string_lossy().into_owned()
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}
