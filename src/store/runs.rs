//! The record of each run, as rows of a Delta table that SQL can query.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::col;
use datafusion::prelude::SessionContext;
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::protocol::SaveMode;
use serde_json::json;

use crate::delta::{self, DeltaError};
use crate::error::Error;
use crate::objects::Objects;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
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
    ];
    Arc::new(Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec()))
});

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its table was published.
    Done,
    /// It stopped with an error.
    Failed,
    /// Somebody stopped it.
    Interrupted,
    /// Its process was gone when the next run began.
    Killed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Killed => "killed",
        }
    }
}

/// A file that a run read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub url: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What names its contents, if the store says.
    pub etag: Option<String>,
    /// When it was last changed.
    pub modified: DateTime<Utc>,
}

/// What is worth knowing of a run afterwards.
#[derive(Debug, Clone, Default)]
pub struct RunRecord {
    /// The run's id.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// A hash of the pipeline file's text.
    pub pipeline_hash: Option<String>,
    /// When it began; by the clock of its machine.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// How it ended; not yet if none.
    pub outcome: Option<Outcome>,
    /// The error, if there was one.
    pub message: Option<String>,
    /// How long it took, by a clock that never goes back.
    pub seconds: Option<f64>,
    /// Rows of the source.
    pub rows_read: Option<u64>,
    /// Texts that were scored by this run.
    pub rows_scored: Option<u64>,
    /// Rows whose score was known from an earlier run.
    pub rows_remembered: Option<u64>,
    /// Rows whose text this run had scored for another row.
    pub rows_repeated: Option<u64>,
    /// Rows with an error instead of a score.
    pub rows_rejected: Option<u64>,
    /// Tokens that the encoder read.
    pub tokens: Option<u64>,
    /// The model's fingerprint.
    pub model: Option<String>,
    /// The model, as the pipeline names it.
    pub model_uri: Option<String>,
    /// In which numbers the encoder multiplied.
    pub precision: Option<String>,
    /// Where inputs were cut, in tokens.
    pub max_length: Option<usize>,
    /// The published table.
    pub output: Option<String>,
    /// Its version, where tables have versions.
    pub output_version: Option<u64>,
    /// The files that were read.
    pub sources: Vec<SourceFile>,
    /// The machine.
    pub host: Option<String>,
}

impl RunRecord {
    fn to_batch(&self) -> Result<RecordBatch, arrow::error::ArrowError> {
        let text = |value: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
        let count = |value: Option<u64>| -> ArrayRef {
            Arc::new(Int64Array::from(vec![value.map(|value| i64::try_from(value).unwrap_or(i64::MAX))]))
        };
        let time = |value: Option<DateTime<Utc>>| -> ArrayRef {
            let micros = value.map(|value| value.timestamp_micros());
            Arc::new(TimestampMicrosecondArray::from(vec![micros]).with_timezone("UTC"))
        };
        let sources: Vec<_> = self
            .sources
            .iter()
            .map(|file| json!({ "url": file.url, "bytes": file.bytes, "etag": file.etag, "modified": file.modified }))
            .collect();
        let columns = vec![
            text(Some(&self.run)),
            text(Some(&self.pipeline)),
            text(self.outcome.map(Outcome::as_str)),
            text(self.message.as_deref()),
            time(self.started_at),
            time(self.ended_at),
            Arc::new(Float64Array::from(vec![self.seconds])),
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
            text(Some(&serde_json::Value::Array(sources).to_string())),
            text(self.host.as_deref()),
            text(Some(env!("CARGO_PKG_VERSION"))),
        ];
        RecordBatch::try_new(Arc::clone(&SCHEMA), columns)
    }
}

/// The table of runs in a store.
#[derive(Debug, Clone)]
pub struct Runs {
    objects: Objects,
}

impl Runs {
    /// The runs of a pipeline's store; nothing is made.
    #[must_use]
    pub fn of(store: &Objects) -> Self {
        Self { objects: store.folder("runs") }
    }

    /// Adds a run.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub async fn add(&self, record: &RunRecord) -> Result<(), Error> {
        let batch = record.to_batch().map_err(|e| self.failed(&e.into()))?;
        let table =
            delta::open_or_create(&self.objects, &SCHEMA, &[], "started_at,ended_at", "couplet: one row a run").await?;
        let properties = CommitProperties::default().with_metadata([(delta::RUN.to_owned(), json!(record.run))]);
        let written =
            table.write(vec![batch]).with_save_mode(SaveMode::Append).with_commit_properties(properties).await;
        written.map_err(|e| DeltaError::new(&self.objects, &e))?;
        Ok(())
    }

    /// The runs as a table, if there has been one.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn provider(&self, context: &SessionContext) -> Result<Option<Arc<dyn TableProvider>>, Error> {
        match delta::open(&self.objects, None).await? {
            Some(table) => Ok(Some(delta::provider(&self.objects, &table, context).await?)),
            None => Ok(None),
        }
    }

    /// The runs of a pipeline, the newest first, as columns of [`RunRecord`]'s names.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn list(&self, pipeline: &str, limit: usize) -> Result<Vec<RecordBatch>, Error> {
        let context = SessionContext::new();
        let Some(provider) = self.provider(&context).await? else { return Ok(Vec::new()) };
        let list = async {
            context
                .read_table(provider)?
                .filter(col("pipeline").eq(datafusion::logical_expr::lit(pipeline)))?
                .sort(vec![col("started_at").sort(false, true)])?
                .limit(0, Some(limit))?
                .collect()
                .await
        };
        let batches = list.await.map_err(|e| self.failed(&e))?;
        // The scan may give strings as views.
        let plain = |batch: RecordBatch| {
            let columns = batch.columns().iter().zip(SCHEMA.fields());
            let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()));
            RecordBatch::try_new(Arc::clone(&SCHEMA), columns.collect::<Result<_, _>>()?)
        };
        batches.into_iter().map(plain).collect::<Result<_, _>>().map_err(|e| self.failed(&e.into()))
    }

    fn failed(&self, error: &DataFusionError) -> Error {
        Error::sql(format!("the runs {}", self.objects), error, None)
    }
}
