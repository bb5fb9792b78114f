//! `couplet runs` and `couplet store gc`: what a pipeline's runs left in its store.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::json::{ArrayWriter, WriterBuilder};
use chrono::{DateTime, Local, TimeZone, Utc};
use datafusion::prelude::SessionContext;

use crate::config::{Pipeline, Scoring};
use crate::error::Error;
use crate::histogram::Drift;
use crate::lock::{self, Seen};
use crate::objects::{Objects, StoreFolder};
use crate::run::{model_name, models_of, pool};
use crate::store::{self, Garbage, Outcome, RunRecord, Runs, collect_garbage, model_class};
use crate::words::{grouped, spoken};

/// The name of the runs in SQL.
const RUNS: &str = "runs";

/// The runs of a pipeline, the newest first, as text or as one JSON document.
///
/// # Errors
/// A pipeline that does not score; a store that cannot be read.
pub async fn runs(pipeline: &Pipeline, limit: usize, as_json: bool) -> Result<String, Error> {
    let place = &scoring_of(pipeline)?.score.store.place;
    let store = store_of(pipeline).await?.map(|store| store.objects);
    let batches = match &store {
        Some(store) => Runs::of(store).list(&pipeline.name, limit).await?,
        None => Vec::new(),
    };
    if as_json {
        return json(&batches).map_err(|e| Error::sql("the runs", &e.into(), None));
    }
    let under_way = match &store {
        Some(store) => under_way(store).await?.unwrap_or_default(),
        None => String::new(),
    };
    if batches.iter().all(|batch| batch.num_rows() == 0) {
        let yet = if under_way.is_empty() { "has not run yet" } else { "has not ended a run yet" };
        return Ok(format!("{} {yet} (its store is {place})\n{under_way}", pipeline.name));
    }
    let mut text = format!(
        "{:<13}  {:<19}  {:<11}  {:>12}  {:>12}  {:>12}  {:>12}  {:>9}  output or error\n",
        "run", "started", "outcome", "took", "read", "scored", "remembered", "rejected"
    );
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let _ = writeln!(text, "{}", line(batch, row));
        }
    }
    Ok(text + &under_way)
}

/// The run that has the lock of the store, which has no record before its end; it may be of another pipeline.
async fn under_way(store: &Objects) -> Result<Option<String>, Error> {
    Ok(lock::look(&store.lock_place()).await?.map(|Seen { holder, is_alive }| match is_alive {
        Some(_) => format!("a run is under way: {holder}\n"),
        None => format!("a run is under way, or was killed where this machine does not see it: {holder}\n"),
    }))
}

/// Gives the session the runs of a pipeline as the table `runs`, if there have been any and no table has the name.
///
/// # Errors
/// A store that cannot be read.
pub async fn register(context: &SessionContext, pipeline: &Pipeline) -> Result<(), Error> {
    if pipeline.scoring.is_none() || context.table_exist(RUNS).unwrap_or(true) {
        return Ok(());
    }
    let Some(store) = store_of(pipeline).await? else { return Ok(()) };
    if let Some(runs) = Runs::of(&store.objects).provider(context).await? {
        context.register_table(RUNS, runs).map_err(|e| Error::sql("the runs", &e, None))?;
    }
    Ok(())
}

/// Runs that are looked at to find the one before.
const LOOK_BACK: usize = 50;

/// How far the scores of a run are from those of the last one before it that ended well; none if there is none.
///
/// # Errors
/// A store that cannot be read.
pub async fn drift(pipeline: &Pipeline, run: &RunRecord) -> Result<Option<Drift>, Error> {
    let Some(scores) = &run.scores else { return Ok(None) };
    let records = records(pipeline, LOOK_BACK).await?;
    Ok(before(&records, run).and_then(|before| scores.drift_from(before.scores.as_ref()?)))
}

/// The last run before another one that ended well, among records of which the newest is the first.
#[must_use]
pub fn before<'a>(records: &'a [RunRecord], run: &RunRecord) -> Option<&'a RunRecord> {
    let earlier = records.iter().filter(|record| record.run < run.run);
    earlier.filter(|record| record.outcome == Some(Outcome::Done)).find(|record| record.scores.is_some())
}

/// Runs that are looked at to find one that ended well: years of nights.
const MOST_NIGHTS: usize = 1000;

/// When the last run that ended well did; none if none has, or if the pipeline only trains.
///
/// # Errors
/// A store that cannot be read.
pub async fn last_success(pipeline: &Pipeline) -> Result<Option<DateTime<Utc>>, Error> {
    if pipeline.scoring.is_none() {
        return Ok(None);
    }
    let records = records(pipeline, MOST_NIGHTS).await?;
    Ok(records.iter().find(|record| record.outcome == Some(Outcome::Done)).and_then(|record| record.ended_at))
}

/// The records of a pipeline's runs, the newest first.
///
/// # Errors
/// A pipeline that does not score; a store that cannot be read.
pub async fn records(pipeline: &Pipeline, limit: usize) -> Result<Vec<RunRecord>, Error> {
    match store_of(pipeline).await? {
        Some(store) => Runs::of(&store.objects).records(&pipeline.name, limit).await,
        None => Ok(Vec::new()),
    }
}

fn line(batch: &RecordBatch, row: usize) -> String {
    let column = |name: &str| batch.column_by_name(name).filter(|column| column.is_valid(row));
    let text = |name: &str| column(name).map(|column| column.as_string::<i32>().value(row).to_owned());
    let number = |name: &str| {
        let number = column(name).map(|column| column.as_primitive::<Int64Type>().value(row));
        number.map_or_else(String::new, |number| grouped(number.unsigned_abs()))
    };
    let started = column("started_at").and_then(|column| {
        let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
        Some(Local.timestamp_micros(micros).single()?.format("%Y-%m-%d %H:%M:%S").to_string())
    });
    let seconds = column("seconds").map(|column| column.as_primitive::<Float64Type>().value(row));
    let took = seconds.map(|seconds| spoken(std::time::Duration::from_secs_f64(seconds.max(0.0))));
    let output = match (text("output"), column("output_version")) {
        (Some(output), Some(_)) => format!("{output}@{}", number("output_version").replace(',', "")),
        (Some(output), None) => output,
        (None, _) => text("message").and_then(|m| m.lines().next().map(str::to_owned)).unwrap_or_default(),
    };
    let line = format!(
        "{:<13}  {:<19}  {:<11}  {:>12}  {:>12}  {:>12}  {:>12}  {:>9}  {output}",
        // The beginning of an id is the time to a millisecond, and enough for `couplet report --run`.
        text("run").map(|run| run.chars().take(13).collect::<String>()).unwrap_or_default(),
        started.unwrap_or_default(),
        text("outcome").unwrap_or_default(),
        took.unwrap_or_default(),
        number("rows_read"),
        number("rows_scored"),
        number("rows_remembered"),
        number("rows_rejected"),
    );
    line.trim_end().to_owned()
}

/// Columns of the table of runs that hold JSON.
const JSON_COLUMNS: [&str; 4] = ["sources", "rejected", "windows", "executors"];

fn json(batches: &[RecordBatch]) -> Result<String, arrow::error::ArrowError> {
    let mut writer: ArrayWriter<_> = WriterBuilder::new().with_explicit_nulls(true).build(Vec::new());
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    let mut document: serde_json::Value = serde_json::from_slice(&writer.into_inner()).unwrap_or_default();
    for run in document.as_array_mut().into_iter().flatten().filter_map(serde_json::Value::as_object_mut) {
        for name in JSON_COLUMNS {
            // The table of runs has them as texts.
            if let Some(value) = run.get_mut(name)
                && let Some(inner) = value.as_str().and_then(|text| serde_json::from_str(text).ok())
            {
                *value = inner;
            }
        }
    }
    Ok(format!("{document:#}\n"))
}

/// Forgets the scores of models that none of the pipelines uses any more; `pipelines` are those that share the store.
///
/// # Errors
/// Pipelines of different stores; a model that cannot be loaded; a store that cannot be read or written.
pub async fn collect(pipelines: &[Pipeline], dry_run: bool) -> Result<Garbage, Error> {
    let mut keep = Vec::new();
    let mut store: Option<Objects> = None;
    for pipeline in pipelines {
        let scoring = scoring_of(pipeline)?;
        let own = Objects::open(&scoring.score.store.place)?;
        if let Some(other) = store.as_ref().filter(|store| store.url != own.url) {
            return Err(Error::Usage(format!(
                "{} has its store in {own}, and {} in {other}; name the pipelines of one store",
                pipeline.path.display(),
                pipelines[0].path.display()
            )));
        }
        store = Some(own);
        let models = Arc::new(models_of(pipeline, pool(Some(1))?, &crate::run::folder_of(&pipeline.path)));
        keep.push(model_class(&models.get(&model_name(&scoring.model)).await?));
    }
    let Some(store) = store else { return Err(Error::Usage("name the pipelines that use the store".into())) };
    match store::look(&store.place).await? {
        None => Ok(Garbage::default()),
        Some(store) if dry_run => collect_garbage(&store, &keep, true).await,
        Some(store) => collect_garbage(&store::open(&store.objects.place).await?, &keep, false).await,
    }
}

fn scoring_of(pipeline: &Pipeline) -> Result<&Scoring, Error> {
    pipeline.scoring.as_ref().ok_or_else(|| {
        Error::Usage(format!(
            "{}: this pipeline scores nothing, and so keeps no scores or runs: it has no [source], [model] and [sink]",
            pipeline.path.display()
        ))
    })
}

/// The store of a pipeline; none if it has not run yet.
async fn store_of(pipeline: &Pipeline) -> Result<Option<StoreFolder>, Error> {
    store::look(&scoring_of(pipeline)?.score.store.place).await
}
