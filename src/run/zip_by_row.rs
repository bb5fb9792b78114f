//! Merges two streams that are sorted by row number.
//!
//! So joins and sorts need only numbers, keys and scores: the texts stay in their file and are read once, in order.

use arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Int64Type;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt};

/// A stream whose first column is the row number, with its current batch and the position in it.
struct Numbered {
    stream: SendableRecordBatchStream,
    batch: Option<RecordBatch>,
    at: usize,
}

impl Numbered {
    fn new(stream: SendableRecordBatchStream) -> Self {
        Self { stream, batch: None, at: 0 }
    }

    /// Loads a batch with unconsumed rows; returns false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, DataFusionError> {
        while self.batch.as_ref().is_none_or(|batch| self.at == batch.num_rows()) {
            self.batch = self.stream.next().await.transpose()?;
            self.at = 0;
            if self.batch.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the current batch, and the numbers of its unconsumed rows.
    fn rest(&self) -> Option<(&RecordBatch, &[i64])> {
        let batch = self.batch.as_ref()?;
        Some((batch, &batch.column(0).as_primitive::<Int64Type>().values()[self.at..]))
    }
}

/// Returns the rows of `all` whose numbers occur in `some`, with the columns of both and without the row numbers.
///
/// The first column of both is the row number. In `all` the numbers are consecutive. In `some` they are ascending; of
/// several rows with one number, the first is used.
pub(super) fn zip_by_row(
    all: SendableRecordBatchStream,
    some: SendableRecordBatchStream,
) -> impl Stream<Item = Result<(RecordBatch, Vec<ArrayRef>), DataFusionError>> {
    let state = (Numbered::new(all), Numbered::new(some), None);
    futures::stream::try_unfold(state, |(mut all, mut some, mut last)| async move {
        while some.fill().await? && all.fill().await? {
            let (Some((rows, numbers)), Some((partners, wanted))) = (all.rest(), some.rest()) else { break };
            let (Some(&first), Some(&end)) = (numbers.first(), numbers.last()) else { break };
            // The number of rows in `wanted` up to the last row of this batch.
            let used = wanted.partition_point(|number| *number <= end);
            let mut pairs = (Vec::with_capacity(used), Vec::with_capacity(used));
            for (i, &number) in wanted[..used].iter().enumerate() {
                if last.replace(number) != Some(number) {
                    let row = usize::try_from(number - first)
                        .map_err(|_| DataFusionError::Internal(format!("row {number} comes after row {first}")))?;
                    pairs.0.push((all.at + row) as u32);
                    pairs.1.push((some.at + i) as u32);
                }
            }
            let none = pairs.0.is_empty();
            let rows = take_record_batch(rows, &UInt32Array::from(pairs.0))?;
            let partners = take_record_batch(partners, &UInt32Array::from(pairs.1))?;
            // The next batch of `some` may refer to the same rows of `all`, so rows after the last match are not
            // consumed.
            let past = if used == wanted.len() { last.map_or(0, |last| (last - first + 1).max(0)) } else { i64::MAX };
            let past = usize::try_from(past).unwrap_or(usize::MAX).min(numbers.len());
            some.at += used;
            all.at += past;
            if !none {
                let mut columns = rows.columns().to_vec();
                columns.remove(0);
                let schema = rows.schema().project(&(1..rows.num_columns()).collect::<Vec<_>>())?;
                let rows = RecordBatch::try_new(schema.into(), columns)?;
                return Ok(Some(((rows, partners.columns()[1..].to_vec()), (all, some, last))));
            }
        }
        Ok(None)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::TryStreamExt;

    use super::*;

    /// Rows of a number and a word with that number, in batches of `size`.
    fn stream(numbers: &[i64], word: &str, size: usize) -> SendableRecordBatchStream {
        let fields = vec![Field::new("row", DataType::Int64, false), Field::new("word", DataType::Utf8, false)];
        let schema = Arc::new(Schema::new(fields));
        let batch = |numbers: &[i64]| {
            let words = StringArray::from_iter_values(numbers.iter().map(|number| format!("{word}{number}")));
            let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(numbers.to_vec())), Arc::new(words)];
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
        };
        let batches: Vec<_> = numbers.chunks(size).map(batch).collect();
        Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches)))
    }

    async fn pairs(all: SendableRecordBatchStream, some: SendableRecordBatchStream) -> Vec<(String, String)> {
        let batches: Vec<_> = zip_by_row(all, some).try_collect().await.expect("rows in order");
        let words =
            |column: &ArrayRef| column.as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>();
        batches.iter().flat_map(|(rows, some)| words(rows.column(0)).into_iter().zip(words(&some[0]))).collect()
    }

    #[tokio::test]
    async fn rows_are_zipped_by_number_for_any_batch_sizes() {
        let all: Vec<i64> = (0..50).collect();
        let chosen: Vec<i64> = vec![0, 1, 1, 1, 6, 7, 8, 20, 20, 33, 48, 49, 49];
        let mut expected: Vec<_> = chosen.iter().map(|n| (format!("a{n}"), format!("s{n}"))).collect();
        expected.dedup();
        for size in 1..20 {
            for other in 1..15 {
                let met = pairs(stream(&all, "a", size), stream(&chosen, "s", other)).await;
                assert_eq!(met, expected, "batches of {size} and {other}");
            }
        }
        assert_eq!(pairs(stream(&all, "a", 7), stream(&all, "s", 3)).await.len(), 50);
        assert!(pairs(stream(&all, "a", 7), stream(&[], "s", 3)).await.is_empty());
    }
}
