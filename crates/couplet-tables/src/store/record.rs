//! Run record: the metrics of a run, stored as a row of the table of runs.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, Int64Builder, ListBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    DataType, Field, FieldRef, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::stages::{EarlierStages, ended};
use crate::histogram::Histogram;
use crate::tables::SourceFile;

pub(super) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let fields = [
        ("run", DataType::Utf8),
        ("pipeline", DataType::Utf8),
        ("outcome", DataType::Utf8),
        ("message", DataType::Utf8),
        ("started_at", time()),
        ("ended_at", time()),
        ("seconds", DataType::Float64),
        ("rows_read", DataType::Int64),
        ("rows_scored", DataType::Int64),
        ("rows_remembered", DataType::Int64),
        ("rows_repeated", DataType::Int64),
        ("rows_rejected", DataType::Int64),
        ("tokens", DataType::Int64),
        ("model", DataType::Utf8),
        ("model_uri", DataType::Utf8),
        ("precision", DataType::Utf8),
        ("max_length", DataType::Int64),
        ("output", DataType::Utf8),
        ("output_version", DataType::Int64),
        ("pipeline_hash", DataType::Utf8),
        ("sources", DataType::Utf8),
        ("host", DataType::Utf8),
        ("couplet_version", DataType::Utf8),
        ("rows_truncated", DataType::Int64),
        ("rejected", DataType::Utf8),
        ("tokens_in_rows", DataType::Int64),
        ("padding_avoided", DataType::Int64),
        ("output_bytes", DataType::Int64),
        ("prepare_seconds", DataType::Float64),
        ("read_seconds", DataType::Float64),
        ("scoring_seconds", DataType::Float64),
        ("publish_seconds", DataType::Float64),
        ("windows", DataType::Utf8),
        ("task", DataType::Utf8),
        ("labels", list_of(DataType::Utf8)),
        ("label_rows", list_of(DataType::Int64)),
        ("score_mean", DataType::Float64),
        ("score_from", DataType::Float64),
        ("score_width", DataType::Float64),
        ("score_counts", list_of(DataType::Int64)),
        ("executors", DataType::Utf8),
        ("pretrain_seconds", DataType::Float64),
        ("finetune_seconds", DataType::Float64),
        ("evaluate_seconds", DataType::Float64),
        ("promoted", DataType::Boolean),
        ("scores_damaged", DataType::Int64),
    ];
    Arc::new(Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec()))
});

/// Delta's name for the items of a list.
fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("element", data_type, true))
}

fn list_of(data_type: DataType) -> DataType {
    DataType::List(item(data_type))
}

/// The outcome of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// The name in the table of runs.
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

/// The metrics of a run.
#[derive(Debug, Clone, Default)]
pub struct RunRecord {
    /// The run's id.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// A hash of the pipeline file's text.
    pub pipeline_hash: Option<String>,
    /// Start of the first stage, by the clock of the run's host.
    pub started_at: Option<DateTime<Utc>>,
    /// End of the run.
    pub ended_at: Option<DateTime<Utc>>,
    /// The outcome; `None` until the run ends.
    pub outcome: Option<Outcome>,
    /// The error message, if any.
    pub message: Option<String>,
    /// Duration of all stages in seconds, by a monotonic clock.
    pub seconds: Option<f64>,
    /// The stages before scoring.
    pub earlier: EarlierStages,
    /// Seconds to open tables, model, store and sink.
    pub prepare_seconds: Option<f64>,
    /// Seconds to read the source and look up its texts.
    pub read_seconds: Option<f64>,
    /// Seconds from the first window to the last.
    pub scoring_seconds: Option<f64>,
    /// Seconds to write the table.
    pub publish_seconds: Option<f64>,
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
    pub scores_damaged: Option<u64>,
    /// Tokens processed by the encoder.
    pub tokens: Option<u64>,
    /// Tokens of the scored texts, including duplicates.
    pub tokens_in_rows: Option<u64>,
    /// Padding tokens that batches in input order would have added to `tokens_in_rows`.
    pub padding_avoided: Option<u64>,
    /// The number of scored windows, and the slowest ones.
    pub windows: Option<Value>,
    /// The cluster executors with their tasks, texts and tokens; `None` if the run scored locally.
    pub executors: Option<Value>,
    /// The model's task.
    pub task: Option<String>,
    /// The model's labels in order, with the number of rows per label; `None` if nothing was published.
    pub labels: Option<Vec<(String, u64)>>,
    /// The score distribution of the published rows.
    pub scores: Option<Histogram>,
    /// The model's fingerprint.
    pub model: Option<String>,
    /// The model's place as written in the pipeline.
    pub model_uri: Option<String>,
    /// Numeric precision of the encoder.
    pub precision: Option<String>,
    /// Maximum input length in tokens; longer inputs are truncated.
    pub max_length: Option<usize>,
    /// The published table.
    pub output: Option<String>,
    /// The table version, for sinks with versions.
    pub output_version: Option<u64>,
    /// The output's size in bytes.
    pub output_bytes: Option<u64>,
    /// The source files.
    pub sources: Vec<SourceFile>,
    /// The host name.
    pub host: Option<String>,
    /// The version of couplet.
    pub couplet_version: Option<String>,
}

impl RunRecord {
    /// The seconds of each stage, and of each part of scoring, in order.
    #[must_use]
    pub fn stages(&self) -> Vec<(&'static str, f64)> {
        let parts = ended([
            ("prepare", self.prepare_seconds),
            ("read", self.read_seconds),
            ("score", self.scoring_seconds),
            ("publish", self.publish_seconds),
        ]);
        self.earlier.seconds().into_iter().chain(parts).collect()
    }

    /// Texts per second, from the first window to the last; `None` if nothing was scored.
    #[must_use]
    pub fn rows_per_second(&self) -> Option<f64> {
        per_second(self.rows_scored, self.scoring_seconds)
    }

    /// Tokens per second, from the first window to the last; `None` if nothing was scored.
    #[must_use]
    pub fn tokens_per_second(&self) -> Option<f64> {
        per_second(self.tokens, self.scoring_seconds)
    }

    /// The share of padding in the tokens of padded batches in input order; `None` if nothing was scored.
    #[must_use]
    pub fn padding_share(&self) -> Option<f64> {
        let (padding, tokens) = (self.padding_avoided? as f64, self.tokens_in_rows? as f64);
        (tokens > 0.0).then(|| padding / (padding + tokens))
    }

    pub(super) fn to_batch(&self) -> Result<RecordBatch, ArrowError> {
        let text = |value: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let count = |value: Option<u64>| -> ArrayRef { Arc::new(Int64Array::from(vec![value.map(whole)])) };
        let number = |value: Option<f64>| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
        let time = |value: Option<DateTime<Utc>>| -> ArrayRef {
            let micros = value.map(|value| value.timestamp_micros());
            Arc::new(TimestampMicrosecondArray::from(vec![micros]).with_timezone("UTC"))
        };
        let counts = |values: Option<Vec<u64>>| -> ArrayRef {
            let mut list = ListBuilder::new(Int64Builder::new()).with_field(item(DataType::Int64));
            let is_there = values.is_some();
            values.into_iter().flatten().for_each(|value| list.values().append_value(whole(value)));
            list.append(is_there);
            Arc::new(list.finish())
        };
        let names = |values: Option<&[(String, u64)]>| -> ArrayRef {
            let mut list = ListBuilder::new(StringBuilder::new()).with_field(item(DataType::Utf8));
            values.into_iter().flatten().for_each(|(name, _)| list.values().append_value(name));
            list.append(values.is_some());
            Arc::new(list.finish())
        };
        let sources: Vec<_> = self
            .sources
            .iter()
            .map(|file| json!({ "url": file.url, "bytes": file.bytes, "etag": file.etag, "modified": file.modified }))
            .collect();
        let rejected: Map<_, _> = self.rejected.iter().map(|(kind, n)| (kind.clone(), (*n).into())).collect();
        let rejected = self.rows_rejected.map(|_| Value::Object(rejected).to_string());
        let labels = self.labels.as_deref();
        let scores = self.scores.as_ref();
        let columns = vec![
            text(Some(&self.run)),
            text(Some(&self.pipeline)),
            text(self.outcome.map(Outcome::as_str)),
            text(self.message.as_deref()),
            time(self.started_at),
            time(self.ended_at),
            number(self.seconds),
            count(self.rows_read),
            count(self.rows_scored),
            count(self.rows_remembered),
            count(self.rows_repeated),
            count(self.rows_rejected),
            count(self.tokens),
            text(self.model.as_deref()),
            text(self.model_uri.as_deref()),
            text(self.precision.as_deref()),
            count(self.max_length.map(|length| length as u64)),
            text(self.output.as_deref()),
            count(self.output_version),
            text(self.pipeline_hash.as_deref()),
            text(Some(&Value::Array(sources).to_string())),
            text(self.host.as_deref()),
            text(Some(env!("CARGO_PKG_VERSION"))),
            count(self.rows_truncated),
            text(rejected.as_deref()),
            count(self.tokens_in_rows),
            count(self.padding_avoided),
            count(self.output_bytes),
            number(self.prepare_seconds),
            number(self.read_seconds),
            number(self.scoring_seconds),
            number(self.publish_seconds),
            text(self.windows.as_ref().map(Value::to_string).as_deref()),
            text(self.task.as_deref()),
            names(labels),
            counts(labels.map(|labels| labels.iter().map(|(_, n)| *n).collect())),
            number(scores.and_then(|scores| scores.mean)),
            number(scores.map(|scores| scores.from)),
            number(scores.map(|scores| scores.width)),
            counts(scores.map(|scores| scores.counts.clone())),
            text(self.executors.as_ref().map(Value::to_string).as_deref()),
            number(self.earlier.pretrain),
            number(self.earlier.finetune),
            number(self.earlier.evaluate),
            Arc::new(BooleanArray::from(vec![self.earlier.promoted])),
            count(self.scores_damaged),
        ];
        RecordBatch::try_new(Arc::clone(&SCHEMA), columns)
    }

    /// Reads a record from a row of the table of runs, whose columns are those of the schema.
    pub(super) fn of_row(batch: &RecordBatch, row: usize) -> Self {
        let column = |name: &str| batch.column_by_name(name).filter(|column| column.is_valid(row));
        let text = |name: &str| column(name).map(|column| column.as_string::<i32>().value(row).to_owned());
        let count =
            |name: &str| column(name).map(|column| column.as_primitive::<Int64Type>().value(row).unsigned_abs());
        let number = |name: &str| column(name).map(|column| column.as_primitive::<Float64Type>().value(row));
        let time = |name: &str| {
            let micros = column(name).map(|column| column.as_primitive::<TimestampMicrosecondType>().value(row));
            micros.and_then(DateTime::from_timestamp_micros)
        };
        let list = |name: &str| column(name).map(|column| column.as_list::<i32>().value(row));
        let counts = |name: &str| {
            let values = list(name)?;
            Some(values.as_primitive::<Int64Type>().iter().map(|n| n.unwrap_or(0).unsigned_abs()).collect::<Vec<_>>())
        };
        let json = |name: &str| text(name).and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let names = list("labels").map(|values| {
            values.as_string::<i32>().iter().map(|name| name.unwrap_or_default().to_owned()).collect::<Vec<_>>()
        });
        let scores = || {
            let (from, width) = (number("score_from")?, number("score_width")?);
            Some(Histogram::of_counts(from, width, counts("score_counts")?, number("score_mean")))
        };
        let source = |file: &Value| {
            Some(SourceFile {
                url: file["url"].as_str()?.to_owned(),
                bytes: file["bytes"].as_u64()?,
                etag: file["etag"].as_str().map(str::to_owned),
                modified: file["modified"].as_str()?.parse().ok()?,
            })
        };
        let sources = json("sources").and_then(|sources| Some(sources.as_array()?.iter().filter_map(source).collect()));
        let rejected = json("rejected").and_then(|kinds| {
            Some(kinds.as_object()?.iter().filter_map(|(kind, n)| Some((kind.clone(), n.as_u64()?))).collect())
        });
        Self {
            run: text("run").unwrap_or_default(),
            pipeline: text("pipeline").unwrap_or_default(),
            pipeline_hash: text("pipeline_hash"),
            started_at: time("started_at"),
            ended_at: time("ended_at"),
            outcome: text("outcome").and_then(|word| Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word)),
            message: text("message"),
            seconds: number("seconds"),
            earlier: EarlierStages {
                pretrain: number("pretrain_seconds"),
                finetune: number("finetune_seconds"),
                evaluate: number("evaluate_seconds"),
                promoted: column("promoted").map(|column| column.as_boolean().value(row)),
            },
            prepare_seconds: number("prepare_seconds"),
            read_seconds: number("read_seconds"),
            scoring_seconds: number("scoring_seconds"),
            publish_seconds: number("publish_seconds"),
            rows_read: count("rows_read"),
            rows_scored: count("rows_scored"),
            rows_remembered: count("rows_remembered"),
            rows_repeated: count("rows_repeated"),
            rows_rejected: count("rows_rejected"),
            rejected: rejected.unwrap_or_default(),
            rows_truncated: count("rows_truncated"),
            scores_damaged: count("scores_damaged"),
            tokens: count("tokens"),
            tokens_in_rows: count("tokens_in_rows"),
            padding_avoided: count("padding_avoided"),
            windows: json("windows"),
            executors: json("executors"),
            task: text("task"),
            labels: names.map(|names| names.into_iter().zip(counts("label_rows").unwrap_or_default()).collect()),
            scores: scores(),
            model: text("model"),
            model_uri: text("model_uri"),
            precision: text("precision"),
            max_length: count("max_length").and_then(|length| usize::try_from(length).ok()),
            output: text("output"),
            output_version: count("output_version"),
            output_bytes: count("output_bytes"),
            sources: sources.unwrap_or_default(),
            host: text("host"),
            couplet_version: text("couplet_version"),
        }
    }
}

fn per_second(n: Option<u64>, seconds: Option<f64>) -> Option<f64> {
    let (n, seconds) = (n.filter(|n| *n > 0)?, seconds.filter(|seconds| *seconds > 0.0)?);
    Some(n as f64 / seconds)
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
            earlier: EarlierStages { finetune: Some(0.5), promoted: Some(false), ..EarlierStages::default() },
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
