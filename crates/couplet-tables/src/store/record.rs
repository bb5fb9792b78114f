//! Run record: the metrics of a run, stored as a row of the table of runs.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, Int64Builder, ListBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::stages::Stages;
use crate::histogram::Histogram;
use crate::tables::SourceFile;

pub(super) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let columns = RunRecord::default().to_columns();
    let fields = columns.into_iter().map(|(name, column)| Field::new(name, column.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
});

/// The outcome of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The table was published.
    Done,
    /// The run stopped with an error.
    Failed,
    /// The run was interrupted by the user.
    Interrupted,
    /// The process was gone when the next run began.
    Killed,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Done, Self::Failed, Self::Interrupted, Self::Killed];

    /// Returns the name in the table of runs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Killed => "killed",
        }
    }
}

/// The speed of scoring, from the first window to the last; `None` if nothing was scored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Speed {
    /// Texts per second.
    pub rows_per_second: Option<f64>,
    /// Tokens per second.
    pub tokens_per_second: Option<f64>,
    /// The share of padding in the tokens of padded batches in input order.
    pub padding_share: Option<f64>,
}

/// The metrics of a run. Serialized, it is the run of `couplet report --format json`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunRecord {
    /// The run's id.
    pub run: String,
    /// The pipeline's name.
    #[serde(skip)]
    pub pipeline: String,
    /// A hash of the pipeline file's text.
    #[serde(skip)]
    pub pipeline_hash: Option<String>,
    /// The outcome; `None` until the run ends.
    pub outcome: Option<Outcome>,
    /// The error message, if any.
    pub message: Option<String>,
    /// Start of the first stage, by the clock of the run's host.
    #[serde(serialize_with = "in_seconds")]
    pub started_at: Option<DateTime<Utc>>,
    /// End of the run.
    #[serde(serialize_with = "in_seconds")]
    pub ended_at: Option<DateTime<Utc>>,
    /// Duration of all stages in seconds, by a monotonic clock.
    pub seconds: Option<f64>,
    /// Duration of each stage.
    pub stages: Stages,
    /// True if the fine-tuned model was promoted, false if `promote_if` rejected it.
    pub promoted: Option<bool>,
    /// The host name.
    pub host: Option<String>,
    /// The version of couplet.
    pub couplet_version: Option<String>,
    /// Rows of the source.
    pub rows_read: Option<u64>,
    /// Texts scored by this run.
    pub rows_scored: Option<u64>,
    /// Rows whose score was cached by an earlier run.
    pub rows_remembered: Option<u64>,
    /// Duplicate rows: this run scored their text for another row.
    pub rows_repeated: Option<u64>,
    /// Rows with an error instead of a score.
    pub rows_rejected: Option<u64>,
    /// Rejected rows by kind of error.
    pub rejected: Vec<(String, u64)>,
    /// Rows whose texts were truncated.
    pub rows_truncated: Option<u64>,
    /// Damaged scores in the store, whose texts were scored again.
    #[serde(skip)]
    pub scores_damaged: Option<u64>,
    /// Tokens processed by the encoder.
    pub tokens: Option<u64>,
    /// Tokens of the scored texts, including duplicates.
    #[serde(skip)]
    pub tokens_in_rows: Option<u64>,
    /// Padding tokens that batches in input order would have added to `tokens_in_rows`.
    #[serde(skip)]
    pub padding_avoided: Option<u64>,
    /// The speed of scoring, set by [`Self::measure_speed`]; the table of runs does not have it.
    #[serde(flatten)]
    pub speed: Speed,
    /// The model's task.
    pub task: Option<String>,
    /// The model's fingerprint.
    pub model: Option<String>,
    /// The model's place as written in the pipeline.
    pub model_uri: Option<String>,
    /// Numeric precision of the encoder.
    pub precision: Option<String>,
    /// Maximum input length in tokens; longer inputs are truncated.
    pub max_length: Option<u64>,
    /// The published table.
    pub output: Option<String>,
    /// The table version, for sinks with versions.
    pub output_version: Option<u64>,
    /// The output's size in bytes.
    pub output_bytes: Option<u64>,
    /// The source files.
    #[serde(serialize_with = "without_etags")]
    pub sources: Vec<SourceFile>,
    /// The model's labels in order, with the number of rows per label; `None` if nothing was published.
    #[serde(serialize_with = "or_empty")]
    pub labels: Option<Vec<(String, u64)>>,
    /// The score distribution of the published rows.
    pub scores: Option<Histogram>,
    /// The number of scored windows, and the slowest ones.
    pub windows: Option<Value>,
    /// The cluster executors with their tasks, texts and tokens; `None` if the run scored locally.
    #[serde(skip)]
    pub executors: Option<Value>,
}

impl RunRecord {
    /// Computes the speed from the counts and the duration of scoring.
    pub fn measure_speed(&mut self) {
        let seconds = self.stages.score.filter(|seconds| *seconds > 0.0);
        let per_second = |n: Option<u64>| Some(n.filter(|n| *n > 0)? as f64 / seconds?);
        let padding = self.padding_avoided.zip(self.tokens_in_rows).filter(|(_, tokens)| *tokens > 0);
        self.speed = Speed {
            rows_per_second: per_second(self.rows_scored),
            tokens_per_second: per_second(self.tokens),
            padding_share: padding.map(|(padding, tokens)| padding as f64 / (padding as f64 + tokens as f64)),
        };
    }

    pub(super) fn to_batch(&self) -> Result<RecordBatch, ArrowError> {
        let columns = self.to_columns().into_iter().map(|(_, column)| column);
        RecordBatch::try_new(Arc::clone(&SCHEMA), columns.collect())
    }

    fn to_columns(&self) -> Vec<(&'static str, ArrayRef)> {
        let mut record = Self { couplet_version: Some(env!("CARGO_PKG_VERSION").to_owned()), ..self.clone() };
        let mut columns = Vec::new();
        record.visit(&mut Columns::Write(&mut columns));
        columns
    }

    /// Reads a record from a row of the table of runs, whose columns are those of the schema.
    pub(super) fn of_row(batch: &RecordBatch, row: usize) -> Self {
        let mut record = Self::default();
        record.visit(&mut Columns::Read(batch, row));
        record.measure_speed();
        record
    }

    /// Visits the columns of the table of runs, in order: writes or reads the field of each.
    fn visit(&mut self, columns: &mut Columns) {
        columns.name("run", &mut self.run);
        columns.name("pipeline", &mut self.pipeline);
        let mut outcome = self.outcome.map(|outcome| outcome.as_str().to_owned());
        columns.text("outcome", &mut outcome);
        self.outcome = outcome.and_then(|word| Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word));
        columns.text("message", &mut self.message);
        columns.time("started_at", &mut self.started_at);
        columns.time("ended_at", &mut self.ended_at);
        columns.number("seconds", &mut self.seconds);
        columns.count("rows_read", &mut self.rows_read);
        columns.count("rows_scored", &mut self.rows_scored);
        columns.count("rows_remembered", &mut self.rows_remembered);
        columns.count("rows_repeated", &mut self.rows_repeated);
        columns.count("rows_rejected", &mut self.rows_rejected);
        columns.count("tokens", &mut self.tokens);
        columns.text("model", &mut self.model);
        columns.text("model_uri", &mut self.model_uri);
        columns.text("precision", &mut self.precision);
        columns.count("max_length", &mut self.max_length);
        columns.text("output", &mut self.output);
        columns.count("output_version", &mut self.output_version);
        columns.text("pipeline_hash", &mut self.pipeline_hash);
        let mut sources = Some(mem::take(&mut self.sources));
        columns.json("sources", &mut sources);
        self.sources = sources.unwrap_or_default();
        columns.text("host", &mut self.host);
        columns.text("couplet_version", &mut self.couplet_version);
        columns.count("rows_truncated", &mut self.rows_truncated);
        let rejected = mem::take(&mut self.rejected);
        let mut rejected = self.rows_rejected.map(|_| rejected.into_iter().collect::<BTreeMap<_, _>>());
        columns.json("rejected", &mut rejected);
        self.rejected = rejected.into_iter().flatten().collect();
        columns.count("tokens_in_rows", &mut self.tokens_in_rows);
        columns.count("padding_avoided", &mut self.padding_avoided);
        columns.count("output_bytes", &mut self.output_bytes);
        columns.number("prepare_seconds", &mut self.stages.prepare);
        columns.number("read_seconds", &mut self.stages.read);
        columns.number("scoring_seconds", &mut self.stages.score);
        columns.number("publish_seconds", &mut self.stages.publish);
        columns.json("windows", &mut self.windows);
        columns.text("task", &mut self.task);
        let (mut labels, mut label_rows) = self.labels.take().map(|labels| labels.into_iter().unzip()).unzip();
        columns.names("labels", &mut labels);
        columns.counts("label_rows", &mut label_rows);
        self.labels = labels.map(|names| names.into_iter().zip(label_rows.unwrap_or_default()).collect());
        let mut mean = self.scores.as_ref().and_then(|scores| scores.mean);
        let (mut from, mut width) = self.scores.as_ref().map(|scores| (scores.from, scores.width)).unzip();
        let mut counts = self.scores.take().map(|scores| scores.counts);
        columns.number("score_mean", &mut mean);
        columns.number("score_from", &mut from);
        columns.number("score_width", &mut width);
        columns.counts("score_counts", &mut counts);
        let bins = from.zip(width).zip(counts);
        self.scores = bins.map(|((from, width), counts)| Histogram::of_counts(from, width, counts, mean));
        columns.json("executors", &mut self.executors);
        columns.number("pretrain_seconds", &mut self.stages.pretrain);
        columns.number("finetune_seconds", &mut self.stages.finetune);
        columns.number("evaluate_seconds", &mut self.stages.evaluate);
        columns.flag("promoted", &mut self.promoted);
        columns.count("scores_damaged", &mut self.scores_damaged);
    }
}

/// The columns of the table of runs, in the direction of a visit.
enum Columns<'a> {
    /// Appends each field as a column with one row.
    Write(&'a mut Vec<(&'static str, ArrayRef)>),
    /// Sets each field to the value in a row, `None` for NULL.
    Read(&'a RecordBatch, usize),
}

impl Columns<'_> {
    fn column<T>(
        &mut self,
        name: &'static str,
        field: &mut Option<T>,
        write: impl FnOnce(Option<&T>) -> ArrayRef,
        read: impl FnOnce(&ArrayRef, usize) -> Option<T>,
    ) {
        match self {
            Self::Write(columns) => columns.push((name, write(field.as_ref()))),
            Self::Read(batch, row) => {
                let column = batch.column_by_name(name).filter(|column| column.is_valid(*row));
                *field = column.and_then(|column| read(column, *row));
            }
        }
    }

    fn text(&mut self, name: &'static str, field: &mut Option<String>) {
        let write = |text: Option<&String>| -> ArrayRef { Arc::new(StringArray::from(vec![text.map(String::as_str)])) };
        self.column(name, field, write, |column, row| Some(column.as_string::<i32>().value(row).to_owned()));
    }

    fn name(&mut self, name: &'static str, field: &mut String) {
        let mut text = Some(mem::take(field));
        self.text(name, &mut text);
        *field = text.unwrap_or_default();
    }

    /// Reads or writes a value as JSON text, with sorted keys.
    fn json<T: Serialize + DeserializeOwned>(&mut self, name: &'static str, field: &mut Option<T>) {
        let mut text = field.as_ref().map(|value| json!(value).to_string());
        self.text(name, &mut text);
        *field = text.and_then(|text| serde_json::from_str(&text).ok());
    }

    fn count(&mut self, name: &'static str, field: &mut Option<u64>) {
        let write =
            |count: Option<&u64>| -> ArrayRef { Arc::new(Int64Array::from(vec![count.copied().map(saturated)])) };
        self.column(name, field, write, |column, row| {
            Some(column.as_primitive::<Int64Type>().value(row).unsigned_abs())
        });
    }

    fn number(&mut self, name: &'static str, field: &mut Option<f64>) {
        let write = |number: Option<&f64>| -> ArrayRef { Arc::new(Float64Array::from(vec![number.copied()])) };
        self.column(name, field, write, |column, row| Some(column.as_primitive::<Float64Type>().value(row)));
    }

    fn flag(&mut self, name: &'static str, field: &mut Option<bool>) {
        let write = |flag: Option<&bool>| -> ArrayRef { Arc::new(BooleanArray::from(vec![flag.copied()])) };
        self.column(name, field, write, |column, row| Some(column.as_boolean().value(row)));
    }

    fn time(&mut self, name: &'static str, field: &mut Option<DateTime<Utc>>) {
        let write = |time: Option<&DateTime<Utc>>| -> ArrayRef {
            let micros = vec![time.map(DateTime::timestamp_micros)];
            Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"))
        };
        self.column(name, field, write, |column, row| {
            DateTime::from_timestamp_micros(column.as_primitive::<TimestampMicrosecondType>().value(row))
        });
    }

    fn names(&mut self, name: &'static str, field: &mut Option<Vec<String>>) {
        let write = |names: Option<&Vec<String>>| -> ArrayRef {
            let mut list = ListBuilder::new(StringBuilder::new()).with_field(item(DataType::Utf8));
            list.append_option(names.map(|names| names.iter().map(Some)));
            Arc::new(list.finish())
        };
        self.column(name, field, write, |column, row| {
            let names = column.as_list::<i32>().value(row);
            Some(names.as_string::<i32>().iter().map(|name| name.unwrap_or_default().to_owned()).collect())
        });
    }

    fn counts(&mut self, name: &'static str, field: &mut Option<Vec<u64>>) {
        let write = |counts: Option<&Vec<u64>>| -> ArrayRef {
            let mut list = ListBuilder::new(Int64Builder::new()).with_field(item(DataType::Int64));
            list.append_option(counts.map(|counts| counts.iter().map(|count| Some(saturated(*count)))));
            Arc::new(list.finish())
        };
        self.column(name, field, write, |column, row| {
            let counts = column.as_list::<i32>().value(row);
            Some(counts.as_primitive::<Int64Type>().iter().map(|count| count.unwrap_or(0).unsigned_abs()).collect())
        });
    }
}

/// The items of a list under Delta's name for them.
fn item(data_type: DataType) -> Field {
    Field::new("element", data_type, true)
}

fn saturated(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Serializes a time without fractions of a second.
fn in_seconds<'t, S: Serializer>(
    time: impl IntoIterator<Item = &'t DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let time = time.into_iter().next().map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true));
    time.serialize(serializer)
}

fn without_etags<S: Serializer>(files: &[SourceFile], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct File<'f> {
        url: &'f str,
        bytes: u64,
        #[serde(serialize_with = "in_seconds")]
        modified: Option<DateTime<Utc>>,
    }
    let files = files.iter();
    serializer.collect_seq(files.map(|file| File { url: &file.url, bytes: file.bytes, modified: Some(file.modified) }))
}

fn or_empty<'l, S: Serializer>(
    labels: impl IntoIterator<Item = &'l Vec<(String, u64)>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(labels.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let mut scores = Histogram::default();
        for score in [0.5, 0.75, 0.999] {
            scores.add(score);
        }
        let record = RunRecord {
            run: "r".into(),
            pipeline: "p".into(),
            outcome: Some(Outcome::Done),
            started_at: DateTime::from_timestamp(1_800_000_000, 0),
            seconds: Some(1.5),
            stages: Stages { finetune: Some(0.5), ..Stages::default() },
            promoted: Some(false),
            rows_rejected: Some(2),
            rejected: vec![("NULL text".into(), 2)],
            windows: Some(json!({ "count": 1 })),
            executors: Some(json!([{ "executor": "one", "tasks": 1 }])),
            labels: Some(vec![("no".into(), 1), ("yes".into(), 2)]),
            scores: Some(scores),
            sources: vec![SourceFile {
                url: "file:///a".into(),
                bytes: 7,
                etag: None,
                modified: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            }],
            couplet_version: Some(env!("CARGO_PKG_VERSION").into()),
            ..RunRecord::default()
        };
        let read = RunRecord::of_row(&record.to_batch().unwrap(), 0);
        assert_eq!(format!("{read:?}"), format!("{record:?}"));
        let nothing = RunRecord::of_row(&RunRecord::default().to_batch().unwrap(), 0);
        assert!(nothing.labels.is_none() && nothing.scores.is_none() && nothing.windows.is_none(), "{nothing:?}");
    }
}
