//! The stage that scores: prepare, score window by window, check, publish.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::StreamExt;

use super::{NOTHING_WRITTEN, blame, folder_of, missing_model, model_name, models_of, pool, query_text, readable};
use crate::config::{Pipeline, Scoring};
use crate::error::Error;
use crate::predict::{prediction_fields, predictions_to_array};
use crate::progress::{Progress, Style, grouped};
use crate::report::Report;
use crate::scorer::{Counts, Prediction, Rejection, Scorer};
use crate::session;
use crate::sink::ParquetSink;
use crate::source::{OUTPUT_COLUMNS, Source};

/// Windows that are scored at once: while the last batches of one run, the next is tokenized.
const WINDOWS_UNDER_WAY: usize = 2;

/// Scores the source into the sink until it is done or `stop` is; a stage that does not end well leaves the sink as it was.
pub(super) async fn score(
    pipeline: &Pipeline,
    scoring: &Scoring,
    variables: &BTreeMap<String, String>,
    style: Style,
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Result<Report, Error> {
    let began = Instant::now();
    let Prepared { context, source, scorer, rows } = tokio::select! {
        biased;
        () = &mut *stop => return Err(interrupted(scoring, "before the first row was scored".into())),
        prepared = prepare(pipeline, scoring, variables) => prepared?,
    };
    let start = Instant::now();
    let progress = Progress::start(style, &scorer, rows);
    let output = match score_windows(pipeline, scoring, &context, source, &scorer, rows, stop).await {
        Ok(output) => output,
        Err(error) => return Err(blame(&context, &pipeline.tables, error, NOTHING_WRITTEN).await),
    };
    drop(progress);
    let elapsed = start.elapsed();
    check(scoring, &scorer.tally().counts(), rows, output.rows)?;
    let labels = output.label_counts(&scorer);
    let output_bytes = output.sink.publish()?;
    Ok(Report {
        pipeline: pipeline.name.clone(),
        model: readable(&scoring.model.location.path).display().to_string(),
        precision: scorer.precision(),
        fingerprint: scorer.model().fingerprint.as_str().to_owned(),
        counts: scorer.tally().counts(),
        labels,
        elapsed: began.elapsed(),
        scoring: elapsed,
        output: readable(&scoring.sink.location.path),
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
async fn prepare(
    pipeline: &Pipeline,
    scoring: &Scoring,
    variables: &BTreeMap<String, String>,
) -> Result<Prepared, Error> {
    let Scoring { source: settings, .. } = scoring;
    let sql = query_text(pipeline, &settings.query, "source.file", variables)?;
    let models = Arc::new(models_of(pipeline, pool(pipeline.run.threads)?, &folder_of(&pipeline.path)));
    // One partition keeps the rows in the order of the files; the cores belong to the model.
    let context =
        session::open(&pipeline.tables, Arc::clone(&models), pipeline.run.window, 1).await.map_err(Error::Tables)?;
    let source = Source::open(&context, &sql, &settings.id, &settings.text, settings.label.as_deref())
        .await
        .map_err(|e| Error::source(&pipeline.path, e, &context))?;
    if let Some(error) = missing_model(&scoring.model) {
        return Err(error);
    }
    let scorer = models.get(&model_name(&scoring.model)).await?;
    match source.count_rows(&settings.id).await {
        Ok(rows) => Ok(Prepared { context, source, scorer, rows }),
        Err(error) => {
            let error = Error::source(&pipeline.path, error, &context);
            Err(blame(&context, &pipeline.tables, error, NOTHING_WRITTEN).await)
        }
    }
}

/// Scores all windows into the sink, which is not published yet.
async fn score_windows(
    pipeline: &Pipeline,
    scoring: &Scoring,
    context: &SessionContext,
    source: Source,
    scorer: &Scorer,
    rows: u64,
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Result<Output, Error> {
    let mut output = Output::create(pipeline, scoring, source.schema(), scorer)?;
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
    loop {
        tokio::select! {
            biased;
            () = &mut *stop => {
                let counts = scorer.tally().counts();
                let done = grouped(rows.min(counts.scored + counts.remembered));
                return Err(interrupted(scoring, format!("after scoring {done} of {} rows", grouped(rows))));
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
fn interrupted(scoring: &Scoring, after: String) -> Error {
    let path = &scoring.sink.location.path;
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
    fn create(pipeline: &Pipeline, scoring: &Scoring, source: &Schema, scorer: &Scorer) -> Result<Self, Error> {
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
            ("couplet.model_uri", scoring.model.location.path.display().to_string()),
            ("couplet.max_length", scorer.max_length().to_string()),
            ("couplet.precision", scorer.precision().to_string()),
        ];
        let sink = ParquetSink::create(&scoring.sink.location.path, &schema, &metadata)?;
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
fn check(scoring: &Scoring, counts: &Counts, read: u64, written: u64) -> Result<(), Error> {
    if read != written {
        return Err(Error::RowsLost { read, written });
    }
    let (rejected, max_errors) = (counts.rejected_rows(), scoring.score.max_errors);
    if rejected as f64 > max_errors * read as f64 {
        let kinds = Rejection::KINDS.iter().zip(counts.rejected).filter(|(_, n)| *n > 0);
        let kinds = kinds.map(|(kind, n)| format!("{n} with {kind}")).collect::<Vec<_>>().join(", ");
        return Err(Error::TooManyErrors { rejected, rows: read, kinds, max_errors });
    }
    Ok(())
}
