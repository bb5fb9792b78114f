//! Output stream: the rows with the output's columns, checked and counted up to the last row.
//!
//! Every sink commits after the stream has ended. So a problem that shows only at the end (a missing row, too many
//! errors) is an error of the stream, and the sink aborts before its rows become visible.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Schema, SchemaRef};
use couplet_encoder::model::Problem;
use couplet_storage::trouble::causes;
use couplet_tables::histogram::Histogram;
use couplet_tables::predict::prediction_fields;
use couplet_tables::source::OUTPUT_COLUMNS;
use datafusion::common::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::streaming::PartitionStream;
use futures::{Stream, StreamExt};
use thiserror::Error;

/// The reason why rows are not published.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The run was interrupted by the user.
    #[error("stopped")]
    Stopped,
    /// Some rows have neither a score nor an error.
    #[error("{rows} rows have neither a score nor an error")]
    Unscored {
        /// The number of such rows, at least.
        rows: u64,
    },
    /// The number of rows written differs from the number read.
    #[error("{read} rows were read and {written} written")]
    Lost {
        /// The number of rows read from the source.
        read: u64,
        /// The number of rows that reached the sink.
        written: u64,
    },
    /// More rows than allowed have an error.
    #[error("{rejected} rows were rejected")]
    TooManyErrors {
        /// The number of rejected rows.
        rejected: u64,
    },
}

/// Statistics of the rows that reached the sink.
#[derive(Debug, Clone, Default)]
pub(super) struct Published {
    pub(super) rows: u64,
    pub(super) rejected: u64,
    pub(super) truncated: u64,
    pub(super) labels: BTreeMap<String, u64>,
    pub(super) scores: Histogram,
}

impl Published {
    fn count(&mut self, label: &str) {
        if let Some(n) = self.labels.get_mut(label) {
            *n += 1;
        } else {
            self.labels.insert(label.to_owned(), 1);
        }
    }
}

/// Conditions that the stream must satisfy.
#[derive(Debug)]
pub(super) struct Check {
    /// The expected number of rows, if known.
    pub(super) rows: Option<u64>,
    /// Maximum number of rows with an error.
    pub(super) max_rejected: u64,
    /// The model's fingerprint, for the column of that name.
    pub(super) model: String,
    /// The labels in the order of the probabilities for multi-label models; otherwise empty.
    pub(super) any_of: Vec<String>,
    /// Set when the user interrupts the run.
    pub(super) stopped: AtomicBool,
    /// Statistics so far.
    pub(super) published: Mutex<Published>,
}

impl Check {
    pub(super) fn published(&self) -> Published {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the output schema: source columns, prediction columns, and the model.
pub(super) fn output_schema(source: &Schema) -> SchemaRef {
    let predicted = prediction_fields();
    let types = predicted.iter().map(|field| (field.data_type().clone(), true)).chain([(DataType::Utf8, false)]);
    let added =
        OUTPUT_COLUMNS.iter().zip(types).map(|(name, (data_type, nullable))| Field::new(*name, data_type, nullable));
    let fields = source.fields().iter().map(|field| Field::clone(field)).chain(added);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The checked stream of scored rows that the sink receives.
pub(super) struct Checked {
    rows: SendableRecordBatchStream,
    schema: SchemaRef,
    against: Arc<Check>,
    ended: bool,
}

impl Checked {
    /// Checks rows that have the source columns and the prediction columns.
    pub(super) fn new(rows: SendableRecordBatchStream, schema: SchemaRef, against: Arc<Check>) -> Self {
        Self { rows, schema, against, ended: false }
    }

    fn check(&self, batch: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        if self.against.stopped.load(Ordering::Relaxed) {
            return Err(refused(Refusal::Stopped));
        }
        let model: ArrayRef = Arc::new(StringArray::from(vec![self.against.model.as_str(); batch.num_rows()]));
        let columns = batch.columns().iter().cloned().chain([model]).zip(self.schema.fields());
        let columns = columns.map(|(column, field)| {
            if column.data_type() == field.data_type() { Ok(column) } else { cast(&column, field.data_type()) }
        });
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns.collect::<Result<Vec<_>, _>>()?)?;
        let first = batch.num_columns() - OUTPUT_COLUMNS.len();
        let column = |name: &str| batch.column(first + OUTPUT_COLUMNS.iter().position(|c| *c == name).unwrap_or(0));
        let (labels, scores, errors) = (column("predicted_label"), column("score"), column("error"));
        let unscored = (0..batch.num_rows()).filter(|&row| scores.is_null(row) && errors.is_null(row)).count();
        if unscored > 0 {
            return Err(refused(Refusal::Unscored { rows: unscored as u64 }));
        }
        let mut published = self.against.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.rows += batch.num_rows() as u64;
        published.rejected += (batch.num_rows() - errors.null_count()) as u64;
        published.truncated += column("truncated").as_boolean().iter().filter(|t| *t == Some(true)).count() as u64;
        let values = scores.as_primitive::<Float32Type>().iter().flatten();
        values.for_each(|score| published.scores.add(f64::from(score)));
        if self.against.any_of.is_empty() {
            labels.as_string::<i32>().iter().flatten().for_each(|label| published.count(label));
        } else {
            for row in column("probabilities").as_list::<i32>().iter().flatten() {
                let probabilities = row.as_primitive::<Float32Type>().values();
                let has = self.against.any_of.iter().zip(probabilities).filter(|(_, p)| **p >= Problem::HAS_LABEL);
                has.for_each(|(label, _)| published.count(label));
            }
        }
        Ok(batch)
    }

    fn end(&self) -> Result<(), DataFusionError> {
        let published = self.against.published();
        if let Some(read) = self.against.rows.filter(|rows| *rows != published.rows) {
            return Err(refused(Refusal::Lost { read, written: published.rows }));
        }
        if published.rejected > self.against.max_rejected {
            return Err(refused(Refusal::TooManyErrors { rejected: published.rejected }));
        }
        Ok(())
    }
}

fn refused(refusal: Refusal) -> DataFusionError {
    DataFusionError::External(Box::new(refusal))
}

/// Finds a refusal in an error, however deeply it is wrapped.
pub(super) fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Refusal> {
    causes(error).find_map(|cause| cause.downcast_ref::<Refusal>()).cloned()
}

impl Stream for Checked {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = match self.rows.poll_next_unpin(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(batch)) => batch.and_then(|batch| self.check(&batch)),
            Poll::Ready(None) => {
                self.ended = true;
                return Poll::Ready(self.end().err().map(Err));
            }
        };
        self.ended |= next.is_err();
        Poll::Ready(Some(next))
    }
}

impl RecordBatchStream for Checked {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// A stream as a table that can be scanned once.
pub(super) struct Once {
    schema: SchemaRef,
    stream: Mutex<Option<SendableRecordBatchStream>>,
}

impl Once {
    pub(super) fn new(stream: SendableRecordBatchStream) -> Self {
        Self { schema: stream.schema(), stream: Mutex::new(Some(stream)) }
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").finish_non_exhaustive()
    }
}

impl PartitionStream for Once {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        stream.unwrap_or_else(|| {
            let error = DataFusionError::Internal("the rows to publish can be read once".into());
            let schema = Arc::clone(&self.schema);
            let again = futures::stream::once(async { Err(error) });
            Box::pin(datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(schema, again))
        })
    }
}
