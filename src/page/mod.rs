//! `couplet report`: a report about a run and its results, as one HTML page or one JSON document.
//!
//! ```text
//! store ─ records of runs ──────┐
//! sink ── the run's own table ──┼─▶ Page ─▶ HTML (charts inside, nothing fetched) or JSON
//! models, evaluation ─ JSON ────┘
//! ```
//!
//! The records of runs (counts, times, score distributions) are in the store, so drift is known even if older tables
//! are gone. Agreement with labels and sample rows are read from the output table of the reported run, if it still
//! exists. Texts are untrusted: they are escaped and shortened, and the page's content security policy forbids scripts
//! and network access.

mod charts;
mod documents;
mod html;
mod judged;
mod samples;
mod sets;
mod table;

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use couplet_storage::words::closest;
use couplet_tables::histogram::{Drift, Histogram, psi_of_counts};
use couplet_tables::store::{Outcome, RunRecord, Speed};
use serde::Serialize;

use crate::config::{Pipeline, Scoring, SinkFormat, SinkMode};
use crate::error::Error;
use crate::frequent::most_frequent;
use crate::history;

pub use documents::{Document, Refused};
pub use html::html;
pub use judged::{ByRange, Judged};
pub use samples::Rows;

/// The maximum number of runs on the page.
const RUNS: usize = 60;
/// The maximum number of labels per run: sixty runs with thousands of labels each would dominate the page.
const MAX_LABELS: usize = 100;
/// The number of records that are searched for a run id: more than a lifetime of nightly runs.
const ALL_RUNS: usize = 100_000;

/// The contents of a report.
#[derive(Debug, Serialize)]
pub struct Page {
    /// The pipeline's name.
    pub pipeline: String,
    /// The version of couplet that generated the page.
    pub couplet: &'static str,
    /// The time at which the page was generated.
    pub made_at: String,
    /// The reported run; `None` for a pipeline that only trains.
    pub run: Option<RunRecord>,
    /// The reported run and earlier runs, newest first.
    pub runs: Vec<Earlier>,
    /// The predictions compared with the gold labels, if the pipeline names a column of labels.
    pub judged: Option<Judged>,
    /// The sample rows.
    pub samples: Vec<Rows>,
    /// The contents of `training.json` of each trained model.
    pub trainings: Vec<Document>,
    /// The newest model that failed `promote_if`, and its training.
    pub refused: Option<Refused>,
    /// The contents of `evaluation.json`.
    pub evaluation: Option<Document>,
    /// The reasons for missing parts of the page.
    pub notes: Vec<String>,
}

/// A run in the run history.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the record")]
pub struct Earlier {
    pub run: String,
    pub outcome: Option<&'static str>,
    pub started_at: Option<String>,
    pub seconds: Option<f64>,
    pub rows_read: Option<u64>,
    pub rows_scored: Option<u64>,
    pub rows_remembered: Option<u64>,
    pub rows_rejected: Option<u64>,
    #[serde(flatten)]
    pub speed: Speed,
    pub model: Option<String>,
    pub score_mean: Option<f64>,
    pub scores: Option<Histogram>,
    /// The number of rows per label, in the model's order; limited to the most frequent labels.
    pub labels: Vec<(String, u64)>,
    /// The number of less frequent labels that were left out.
    pub labels_left_out: usize,
    /// The drift of its scores from those of the previous successful run.
    pub drift: Option<Drift>,
    /// The drift of the scores of the reported run from the scores of this one.
    pub drift_to_run: Option<Drift>,
    /// The population stability index of the labels of the reported run against this one.
    pub label_psi_to_run: Option<f64>,
}

/// Collects the report about the newest run of a pipeline, or about the run with the given id or id prefix.
///
/// # Errors
/// A pipeline that has neither run nor trained; a run that is not recorded; a store or a table that cannot be read.
pub async fn collect(pipeline: &Pipeline, run: Option<&str>) -> Result<Page, Error> {
    let mut page = Page {
        pipeline: pipeline.name.clone(),
        couplet: env!("CARGO_PKG_VERSION"),
        made_at: time(Utc::now()),
        run: None,
        runs: Vec::new(),
        judged: None,
        samples: Vec::new(),
        trainings: Vec::new(),
        refused: None,
        evaluation: None,
        notes: Vec::new(),
    };
    let pretrain = pipeline.pretrain.as_ref().map(|stage| &stage.learning.output.path);
    let finetune = pipeline.finetune.as_ref().map(|stage| &stage.learning.output.path);
    page.trainings.extend(pretrain.into_iter().chain(finetune).filter_map(|folder| Document::training(folder)));
    page.refused = finetune.and_then(|folder| Refused::beside(folder));
    page.evaluation = pipeline.evaluate.as_ref().and_then(|stage| Document::evaluation(&stage.output.path));
    let records = match &pipeline.scoring {
        Some(_) => history::records(pipeline, looked_at(run)).await?,
        None => Vec::new(),
    };
    match pipeline.scoring.as_ref().zip(chosen(&records, run)?) {
        Some((scoring, place)) => {
            page.of_run(pipeline, scoring, &records, place).await?;
        }
        None if page.trainings.is_empty() && page.refused.is_none() && page.evaluation.is_none() => {
            return Err(nothing(pipeline, ", and there is no trained model or evaluation"));
        }
        None => page.notes.push("The pipeline has not scored yet, or has nothing to score.".into()),
    }
    Ok(page)
}

/// Returns the record of the newest run of a pipeline, or of the run with the given id or id prefix, and the records of
/// all runs.
///
/// # Errors
/// A pipeline that has not run; a run that is not recorded; a store that cannot be read.
pub async fn run_of(pipeline: &Pipeline, run: Option<&str>) -> Result<(RunRecord, Vec<RunRecord>), Error> {
    let records = history::records(pipeline, looked_at(run)).await?;
    match chosen(&records, run)? {
        Some(place) => Ok((records[place].clone(), records)),
        None => Err(nothing(pipeline, "")),
    }
}

/// Returns the number of newest runs to read: a run given by id may be older than those on a page.
fn looked_at(run: Option<&str>) -> usize {
    if run.is_some() { ALL_RUNS } else { RUNS }
}

fn nothing(pipeline: &Pipeline, detail: &str) -> Error {
    Error::Usage(format!(
        "{}: nothing to report: no run of this pipeline is recorded{detail}; run it first: couplet run {0}",
        pipeline.path.display()
    ))
}

/// Returns the index of the requested run among the records, which are sorted newest first.
fn chosen(records: &[RunRecord], run: Option<&str>) -> Result<Option<usize>, Error> {
    let Some(run) = run else { return Ok((!records.is_empty()).then_some(0)) };
    let matches: Vec<usize> = (0..records.len()).filter(|&i| records[i].run.starts_with(run)).collect();
    match matches[..] {
        [place] => Ok(Some(place)),
        [] => {
            let near = closest(run, records.iter().map(|record| record.run.as_str()));
            let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            let newest = records.iter().take(3).map(|record| record.run.as_str()).collect::<Vec<_>>().join(", ");
            let newest = if newest.is_empty() { "there is none".into() } else { format!("the newest are {newest}") };
            Err(Error::Usage(format!("--run {run}: the pipeline has no such run ({newest}){near}")))
        }
        _ => Err(Error::Usage(format!(
            "--run {run}: {} runs have an id with this prefix; give a longer prefix",
            matches.len()
        ))),
    }
}

impl Page {
    async fn of_run(
        &mut self,
        pipeline: &Pipeline,
        scoring: &Scoring,
        records: &[RunRecord],
        place: usize,
    ) -> Result<(), Error> {
        let record = &records[place];
        self.run = Some(record.clone());
        let shown = &records[place..records.len().min(place + RUNS)];
        self.runs = shown.iter().map(|other| Earlier::of(other, &records[place..], record)).collect();
        if record.outcome == Some(Outcome::Done) && record.scores.is_none() {
            self.notes.push(
                "An earlier version of couplet recorded this run, without the distribution of its scores and the times \
                 of its stages."
                    .into(),
            );
        }
        if record.output.is_none() {
            self.notes.push("This run published no table, so there are no rows to show.".into());
            return Ok(());
        }
        let newest = records.iter().find(|record| record.output.is_some());
        let is_newest = newest.is_some_and(|newest| newest.run == record.run);
        let table = match table::of_run(pipeline, scoring, record, is_newest).await? {
            Ok(table) => table,
            Err(why) => {
                self.notes.push(why);
                return Ok(());
            }
        };
        let is_not_first = records[place + 1..].iter().any(|other| other.output.is_some());
        if scoring.sink.format == SinkFormat::Delta && scoring.sink.mode == SinkMode::Append && is_not_first {
            self.notes.push(
                "The sink appends, so the table also has the rows of earlier runs: agreement and sample rows cover all \
                 runs up to this one."
                    .into(),
            );
        }
        let (judged, mistakes) = judged::judge(&table, pipeline, scoring, record, &mut self.notes).await?;
        self.judged = judged;
        self.samples = samples::samples(&table, scoring, record, mistakes.as_deref()).await?;
        Ok(())
    }
}

impl Earlier {
    /// Creates the history entry of a run, compared with the previous run in `records` and with the reported run
    /// `about`.
    fn of(record: &RunRecord, records: &[RunRecord], about: &RunRecord) -> Self {
        let scores = record.scores.as_ref();
        let before = history::before(records, record).and_then(|before| before.scores.as_ref());
        let labels = record.labels.clone().unwrap_or_default();
        let now = about.labels.as_deref().unwrap_or_default();
        let is_other = record.run != about.run;
        Self {
            run: record.run.clone(),
            outcome: record.outcome.map(Outcome::as_str),
            started_at: record.started_at.map(time),
            seconds: record.seconds,
            rows_read: record.rows_read,
            rows_scored: record.rows_scored,
            rows_remembered: record.rows_remembered,
            rows_rejected: record.rows_rejected,
            speed: record.speed,
            model: record.model.clone(),
            score_mean: scores.and_then(|scores| scores.mean),
            drift: scores.zip(before).and_then(|(scores, before)| scores.drift_from(before)),
            drift_to_run: scores.filter(|_| is_other).and_then(|scores| about.scores.as_ref()?.drift_from(scores)),
            label_psi_to_run: is_other.then(|| label_psi(&labels, now)).flatten(),
            scores: record.scores.clone(),
            labels_left_out: labels.len().saturating_sub(MAX_LABELS),
            labels: most_frequent(&labels, MAX_LABELS, |(_, n)| *n).into_iter().map(|i| labels[i].clone()).collect(),
        }
    }
}

/// Returns the PSI of labels, matched by name. A label that only one of the two models has counts as having no rows in
/// the other.
fn label_psi(before: &[(String, u64)], now: &[(String, u64)]) -> Option<f64> {
    let mut rows = BTreeMap::<&str, (u64, u64)>::new();
    for (name, n) in before {
        rows.entry(name).or_default().0 = *n;
    }
    for (name, n) in now {
        rows.entry(name).or_default().1 = *n;
    }
    let (before, now): (Vec<u64>, Vec<u64>) = rows.into_values().unzip();
    psi_of_counts(&before, &now)
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_compared_by_name() {
        let labels = |rows: &[(&str, u64)]| rows.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<Vec<_>>();
        let before = labels(&[("no", 5), ("yes", 5)]);
        assert_eq!(label_psi(&before, &labels(&[("yes", 3), ("no", 3)])), Some(0.0));
        assert_eq!(
            label_psi(&before, &labels(&[("yes", 5), ("no", 3), ("new", 2)])),
            psi_of_counts(&[5, 5, 0], &[3, 5, 2])
        );
        assert_eq!(label_psi(&before, &[]), None);
    }
}
