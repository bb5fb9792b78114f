//! `couplet runs` and `couplet store gc`: the run history and the cached scores in a pipeline's store.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::json::{ArrayWriter, WriterBuilder};
use chrono::{DateTime, Local, Utc};
use couplet_storage::lock::{self, HolderStatus};
use couplet_storage::objects::{Objects, StoreFolder};
use couplet_storage::words::{format_duration, grouped};
use couplet_tables::histogram::Drift;
use couplet_tables::store::{self, Garbage, Outcome, RunRecord, Runs, collect_garbage, model_class};
use datafusion::prelude::SessionContext;

use crate::config::{Pipeline, Scoring};
use crate::error::Error;
use crate::run::{model_name, models_of, pool};

/// The name of the table of runs in SQL.
const RUNS: &str = "runs";

/// Returns the runs of a pipeline, newest first, as text or as one JSON document.
///
/// # Errors
/// A pipeline that does not score; a store that cannot be read.
pub async fn runs(pipeline: &Pipeline, limit: usize, as_json: bool) -> Result<String, Error> {
    let place = &scoring_of(pipeline)?.score.store.place;
    let store = store_of(pipeline).await?.map(|store| store.objects);
    if as_json {
        let batches = match &store {
            Some(store) => Runs::of(store).list(&pipeline.name, limit).await?,
            None => Vec::new(),
        };
        return json(&batches).map_err(|e| Error::sql("the runs", &e.into(), None));
    }
    let under_way = match &store {
        Some(store) => under_way(store).await?.unwrap_or_default(),
        None => String::new(),
    };
    let records = records(pipeline, limit).await?;
    if records.is_empty() {
        let yet = if under_way.is_empty() { "has not run yet" } else { "has not ended a run yet" };
        return Ok(format!("{} {yet} (its store is {place})\n{under_way}", pipeline.name));
    }
    let mut text = format!(
        "{:<13}  {:<19}  {:<11}  {:>12}  {:>12}  {:>12}  {:>12}  {:>9}  output or error\n",
        "run", "started", "outcome", "took", "read", "scored", "cached", "rejected"
    );
    for record in &records {
        let _ = writeln!(text, "{}", line(record));
    }
    Ok(text + &under_way)
}

/// Describes the run that holds the lock of the store. It has no record before it ends, and may belong to another
/// pipeline.
async fn under_way(store: &Objects) -> Result<Option<String>, Error> {
    Ok(lock::current_holder(&store.lock_place()).await?.map(|HolderStatus { holder, is_alive }| match is_alive {
        Some(_) => format!("a run is in progress: {holder}\n"),
        None => format!("a run is in progress, or was killed on a machine that this one cannot check: {holder}\n"),
    }))
}

/// Registers the runs of a pipeline as the table `runs`, if there are any and the name is free.
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

/// The number of records that are searched for the previous run.
const LOOK_BACK: usize = 50;

/// Returns the drift of the scores of a run from those of the previous successful run; `None` if there is none.
///
/// # Errors
/// A store that cannot be read.
pub async fn drift(pipeline: &Pipeline, run: &RunRecord) -> Result<Option<Drift>, Error> {
    let Some(scores) = &run.scores else { return Ok(None) };
    let records = records(pipeline, LOOK_BACK).await?;
    Ok(before(&records, run).and_then(|before| scores.drift_from(before.scores.as_ref()?)))
}

/// Returns the last successful run before `run`, among records sorted newest first.
#[must_use]
pub fn before<'a>(records: &'a [RunRecord], run: &RunRecord) -> Option<&'a RunRecord> {
    let earlier = records.iter().filter(|record| record.run < run.run);
    earlier.filter(|record| record.outcome == Some(Outcome::Done)).find(|record| record.scores.is_some())
}

/// The number of records that are searched for a successful run: years of nightly runs.
const MAX_RECORDS: usize = 1000;

/// Returns the end time of the last successful run; `None` if there is none, or if the pipeline only trains.
///
/// # Errors
/// A store that cannot be read.
pub async fn last_success(pipeline: &Pipeline) -> Result<Option<DateTime<Utc>>, Error> {
    if pipeline.scoring.is_none() {
        return Ok(None);
    }
    let records = records(pipeline, MAX_RECORDS).await?;
    Ok(records.iter().find(|record| record.outcome == Some(Outcome::Done)).and_then(|record| record.ended_at))
}

/// Returns the records of a pipeline's runs, newest first.
///
/// # Errors
/// A pipeline that does not score; a store that cannot be read.
pub async fn records(pipeline: &Pipeline, limit: usize) -> Result<Vec<RunRecord>, Error> {
    match store_of(pipeline).await? {
        Some(store) => Ok(Runs::of(&store.objects).records(&pipeline.name, limit).await?),
        None => Ok(Vec::new()),
    }
}

fn line(record: &RunRecord) -> String {
    let number = |number: Option<u64>| number.map_or_else(String::new, grouped);
    let started = record.started_at.map(|time| time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string());
    let took = record.seconds.map(|seconds| format_duration(std::time::Duration::from_secs_f64(seconds.max(0.0))));
    let output = match (&record.output, record.output_version) {
        (Some(output), Some(version)) => format!("{output}@{version}"),
        (Some(output), None) => output.clone(),
        (None, _) => record.message.as_ref().and_then(|m| m.lines().next()).unwrap_or_default().to_owned(),
    };
    let line = format!(
        "{:<13}  {:<19}  {:<11}  {:>12}  {:>12}  {:>12}  {:>12}  {:>9}  {output}",
        // The first 13 characters of an id encode the time in milliseconds, and suffice for `couplet report --run`.
        record.run.chars().take(13).collect::<String>(),
        started.unwrap_or_default(),
        record.outcome.map_or("", Outcome::as_str),
        took.unwrap_or_default(),
        number(record.rows_read),
        number(record.rows_scored),
        number(record.rows_remembered),
        number(record.rows_rejected),
    );
    line.trim_end().to_owned()
}

/// The columns of the table of runs that contain JSON text.
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
            // The table of runs stores them as text.
            if let Some(value) = run.get_mut(name)
                && let Some(inner) = value.as_str().and_then(|text| serde_json::from_str(text).ok())
            {
                *value = inner;
            }
        }
    }
    Ok(format!("{document:#}\n"))
}

/// Deletes the cached scores of models that none of `pipelines` uses. `pipelines` must be all pipelines that share the
/// store.
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
    match store::open_existing(&store.place).await? {
        None => Ok(Garbage::default()),
        Some(store) if dry_run => Ok(collect_garbage(&store, &keep, true).await?),
        Some(store) => Ok(collect_garbage(&store::open(&store.objects.place).await?, &keep, false).await?),
    }
}

fn scoring_of(pipeline: &Pipeline) -> Result<&Scoring, Error> {
    pipeline.scoring.as_ref().ok_or_else(|| {
        Error::Usage(format!(
            "{}: this pipeline does not score, so it has no scores or runs: [source], [model] and [sink] are missing",
            pipeline.path.display()
        ))
    })
}

/// Returns the store of a pipeline; `None` if it has not run yet.
async fn store_of(pipeline: &Pipeline) -> Result<Option<StoreFolder>, Error> {
    Ok(store::open_existing(&scoring_of(pipeline)?.score.store.place).await?)
}
