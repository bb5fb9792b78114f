//! Compares the predictions of a run with gold labels. SQL computes the counts, so any number of rows is possible.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use couplet_encoder::model::Problem;
use couplet_tables::store::RunRecord;
use couplet_train::statistics::labels::{Labels, Targets};
use couplet_train::statistics::metrics::{Bin, BinSums, Confusion, DEFAULT_BINS, LabelScores};
use couplet_train::statistics::task::Task;
use serde::Serialize;

use super::sets::sets;
use super::table::{Output, literal, quoted};
use crate::config::{Pipeline, Scoring};
use crate::error::Error;
use crate::run::gold_labels;

/// The number of combinations of label, prediction and bin from which a column is not treated as labels.
pub(super) const MAX_GROUPS: usize = 20_000;
/// The number of label ranges of a regression.
const RANGES: usize = 10;
/// The maximum number of unknown labels that are listed.
const MAX_UNKNOWN: usize = 5;

/// A comparison of predictions with gold labels.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Judged {
    /// One label per row.
    Labels {
        /// The number of rows with a label and a prediction.
        rows: u64,
        /// The label names, in the order of the confusion matrix.
        labels: Vec<String>,
        /// The number of rows by gold label and predicted label.
        confusion: Vec<Vec<u64>>,
        /// The share of correct rows.
        accuracy: Option<f64>,
        /// The mean of the labels' F1.
        f1_macro: Option<f64>,
        /// Matthews' correlation coefficient.
        matthews: Option<f64>,
        /// The expected calibration error.
        calibration_error: Option<f64>,
        /// Precision, recall and F1 of each label.
        by_label: Vec<LabelScores>,
        /// The accuracy by confidence, for bins with rows.
        reliability: Vec<Bin>,
        /// The number of rows with a label but no prediction.
        unscored: u64,
        /// Labels that the model does not know, with their row counts.
        unknown: Vec<(String, u64)>,
    },
    /// A value per row.
    Values {
        /// The number of rows with a label and a value.
        rows: u64,
        /// Mean absolute error.
        mae: Option<f64>,
        /// Root mean squared error.
        rmse: Option<f64>,
        /// Mean of value minus label.
        bias: Option<f64>,
        /// Pearson's correlation.
        pearson: Option<f64>,
        /// The comparison by ranges of the labels.
        ranges: Vec<ByRange>,
    },
    /// Any number of labels per row.
    Sets {
        /// The number of rows with labels and a prediction.
        rows: u64,
        /// The micro-averaged F1.
        f1_micro: Option<f64>,
        /// The mean of the labels' F1.
        f1_macro: Option<f64>,
        /// Precision, recall and F1 of each label.
        by_label: Vec<LabelScores>,
        /// The number of less frequent labels that were left out of the comparison.
        left_out: usize,
    },
}

/// The rows of a range of labels.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub struct ByRange {
    pub rows: u64,
    pub mean_label: f64,
    pub mean_score: f64,
    pub mae: f64,
}

/// Returns true if the model of a run is a regression.
pub(super) fn is_regression(record: &RunRecord) -> bool {
    record.task.as_deref() == Some(&*Problem::Regression.to_string())
}

/// Compares the predictions with the labels, if the pipeline names a column of labels. Also returns SQL for the size of
/// the error of a row, which is NULL for a correct row. The reason for a missing comparison is added to `notes`.
pub(super) async fn judge(
    table: &Output,
    pipeline: &Pipeline,
    scoring: &Scoring,
    record: &RunRecord,
    notes: &mut Vec<String>,
) -> Result<(Option<Judged>, Option<String>), Error> {
    let nothing = (None, None);
    let Some(label) = &scoring.source.label else { return Ok(nothing) };
    let (Ok(field), Some(names), Some(task)) =
        (table.schema.field_with_name(label), record.labels.as_ref(), record.task.as_deref())
    else {
        return Ok(nothing);
    };
    let names: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
    let is = |problem: Problem| task == problem.to_string();
    let judged = if is(Problem::Regression) && field.data_type().is_numeric() {
        values(table, label).await?
    } else if is(Problem::MultiLabel) && field.data_type().is_list() {
        sets(table, label, &names).await?
    } else if is(Problem::SingleLabel) && !field.data_type().is_nested() {
        let task = task_of(pipeline, Problem::SingleLabel).unwrap_or(Task::Classification);
        match Labels::given(task, names) {
            Ok(labels) => labelled(table, label, &labels).await?,
            Err(error) => Err(error.to_string()),
        }
    } else {
        Err(format!("its values are {}, which do not suit a {task}", field.data_type()))
    };
    match judged {
        Ok((judged, mistakes)) => Ok((Some(judged), mistakes)),
        Err(why) => {
            notes.push(format!("The column {label} was not compared with the predictions: {why}."));
            Ok(nothing)
        }
    }
}

/// Returns the task of the pipeline's other stages, which defines the meaning of the labels.
fn task_of(pipeline: &Pipeline, problem: Problem) -> Option<Task> {
    let finetune = pipeline.finetune.as_ref().map(|stage| stage.task);
    let evaluate = pipeline.evaluate.as_ref().and_then(|stage| stage.task);
    finetune.or(evaluate).filter(|task| task.problem() == problem)
}

pub(super) type Comparison = Result<(Judged, Option<String>), String>;

async fn labelled(table: &Output, label: &str, labels: &Labels) -> Result<Comparison, Error> {
    let column = quoted(label);
    let batches = table
        .query(&format!(
            "SELECT {column} AS gold, predicted_label, \
             CAST(greatest(ceil(CAST(score AS DOUBLE) * {DEFAULT_BINS}), 1) AS BIGINT) AS bin, \
             count(*) AS n, sum(CAST(score AS DOUBLE)) AS total \
             FROM predictions WHERE {column} IS NOT NULL GROUP BY 1, 2, 3 LIMIT {MAX_GROUPS}"
        ))
        .await?;
    if batches.iter().map(RecordBatch::num_rows).sum::<usize>() >= MAX_GROUPS {
        return Ok(Err("it has too many different values to be labels".into()));
    }
    let mut cells = BTreeMap::<(u32, u32), u64>::new();
    let mut sums = BinSums::new(DEFAULT_BINS);
    let (mut unscored, mut unknown) = (0, Vec::<(String, u64)>::new());
    // Each value of the column as text, and the index of the label that it stands for.
    let mut meanings: Vec<(String, usize)> = Vec::new();
    for batch in &batches {
        let gold = gold_labels(batch.column(0)).map_err(|e| Error::sql("the labels", &e.into(), None))?;
        let (all_written, all_predicted) = (texts(batch, 0)?, texts(batch, 1)?);
        let [bins, counts] = [2, 3].map(|column| batch.column(column).as_primitive::<Int64Type>());
        let totals = batch.column(4).as_primitive::<Float64Type>();
        for (row, gold) in gold.into_iter().enumerate() {
            let (written, n) = (all_written.value(row), counts.value(row).unsigned_abs());
            let Ok(Targets::Classes(places)) = labels.targets(&[gold]) else {
                match unknown.iter_mut().find(|(other, _)| other == written) {
                    Some((_, rows)) => *rows += n,
                    None => unknown.push((written.to_owned(), n)),
                }
                continue;
            };
            let gold = places[0];
            if !meanings.iter().any(|(other, _)| other == written) {
                meanings.push((written.to_owned(), gold as usize));
            }
            let name = all_predicted.is_valid(row).then(|| all_predicted.value(row));
            let Some(predicted) = name.and_then(|name| labels.names().iter().position(|other| other == name)) else {
                unscored += n;
                continue;
            };
            let predicted = predicted as u32;
            *cells.entry((gold, predicted)).or_default() += n;
            let bin = (bins.value(row).max(1) as usize).min(DEFAULT_BINS) - 1;
            sums.add(bin, n, if gold == predicted { n } else { 0 }, totals.value(row));
        }
    }
    let confusion = Confusion::of_cells(labels.names().len(), cells);
    let rows = confusion.total();
    if rows == 0 && !unknown.is_empty() {
        let some = unknown.iter().take(MAX_UNKNOWN).map(|(label, _)| label.as_str()).collect::<Vec<_>>().join(", ");
        return Ok(Err(format!("the model knows none of its values ({some}); it has {}", first(labels.names()))));
    }
    if rows == 0 {
        return Ok(Err("no row has both a label and a prediction".into()));
    }
    unknown.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    unknown.truncate(MAX_UNKNOWN);
    let judged = Judged::Labels {
        rows,
        labels: labels.names().to_vec(),
        confusion: confusion.matrix(),
        accuracy: confusion.accuracy(),
        f1_macro: confusion.f1_macro(),
        matthews: confusion.matthews(),
        calibration_error: sums.expected_calibration_error(),
        by_label: confusion.by_label(labels.names()),
        reliability: sums.bins().into_iter().filter(|bin| bin.count > 0).collect(),
        unscored,
        unknown,
    };
    let cases = meanings
        .iter()
        .map(|(written, place)| format!(" WHEN {} THEN {}", literal(written), literal(&labels.names()[*place])));
    let gold = format!("CASE CAST({column} AS VARCHAR){} END", cases.collect::<String>());
    Ok(Ok((judged, Some(format!("CASE WHEN predicted_label <> {gold} THEN score END")))))
}

/// Lists the first names for a message.
fn first(names: &[String]) -> String {
    let more =
        if names.len() > MAX_UNKNOWN { format!(" and {} more", names.len() - MAX_UNKNOWN) } else { String::new() };
    format!("{}{more}", names[..names.len().min(MAX_UNKNOWN)].join(", "))
}

/// Returns a column of label names.
pub(super) fn texts(batch: &RecordBatch, column: usize) -> Result<StringArray, Error> {
    let texts = cast(batch.column(column), &DataType::Utf8).map_err(|e| Error::sql("the labels", &e.into(), None))?;
    Ok(texts.as_string().clone())
}

async fn values(table: &Output, label: &str) -> Result<Comparison, Error> {
    let column = quoted(label);
    let pairs = format!(
        "SELECT CAST({column} AS DOUBLE) AS y, CAST(score AS DOUBLE) AS x FROM predictions \
         WHERE {column} IS NOT NULL AND score IS NOT NULL"
    );
    let all = table
        .query(&format!(
            "SELECT count(*), avg(abs(x - y)), sqrt(avg((x - y) * (x - y))), avg(x - y), corr(x, y) FROM ({pairs})"
        ))
        .await?;
    let ranges = table
        .query(&format!(
            "WITH pairs AS ({pairs}), ends AS (SELECT min(y) AS low, max(y) AS high FROM pairs) \
             SELECT least(floor((y - low) / nullif(high - low, 0) * {RANGES}), {RANGES} - 1) AS range, \
             count(*), avg(y), avg(x), avg(abs(x - y)) FROM pairs CROSS JOIN ends GROUP BY 1 ORDER BY 1"
        ))
        .await?;
    let count = |batch: &RecordBatch, column: usize, row: usize| {
        batch.column(column).as_primitive::<Int64Type>().value(row).unsigned_abs()
    };
    let number = |batch: &RecordBatch, column: usize, row: usize| {
        let values = batch.column(column).as_primitive::<Float64Type>();
        values.is_valid(row).then(|| values.value(row)).filter(|value| value.is_finite())
    };
    let Some(first) = all.iter().find(|batch| batch.num_rows() > 0 && count(batch, 0, 0) > 0) else {
        return Ok(Err("no row has both a label and a value".into()));
    };
    let ranges = ranges.iter().flat_map(|batch| {
        (0..batch.num_rows()).filter_map(|row| {
            Some(ByRange {
                rows: count(batch, 1, row),
                mean_label: number(batch, 2, row)?,
                mean_score: number(batch, 3, row)?,
                mae: number(batch, 4, row)?,
            })
        })
    });
    let judged = Judged::Values {
        rows: count(first, 0, 0),
        mae: number(first, 1, 0),
        rmse: number(first, 2, 0),
        bias: number(first, 3, 0),
        pearson: number(first, 4, 0),
        ranges: ranges.collect(),
    };
    let mistakes = format!("abs(CAST(score AS DOUBLE) - CAST({column} AS DOUBLE))");
    Ok(Ok((judged, Some(mistakes))))
}
