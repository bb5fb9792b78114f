//! Pending texts: the distinct texts of a run without a score, in a file.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::{BatchCoalescer, concat_batches};
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use couplet_encoder::scorer::{TextColumn, Window};
use couplet_storage::files;
use couplet_tables::predict::text_values;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt};

use super::digest::damaged;

/// Consecutive rows in a group of a sample.
const SAMPLED_TOGETHER: u64 = 32;

/// Distinct texts to score, in a file.
pub(super) struct Pending {
    path: PathBuf,
    reader: FileReader<BufReader<File>>,
    columns: usize,
    /// The number of rows of each batch but the last.
    window: u64,
    /// The number of distinct texts or pairs.
    pub(super) texts: u64,
    /// The number of source rows with these texts.
    pub(super) rows: u64,
}

impl Pending {
    /// Writes `batches` into a file in `folder`. Their columns are the key, `columns` texts, and the number of rows
    /// with these texts.
    pub(super) async fn fill(
        batches: SendableRecordBatchStream,
        columns: usize,
        window: usize,
        folder: &Path,
    ) -> Result<Self, DataFusionError> {
        let path = folder.join("pending.arrow");
        let mut writer =
            FileWriter::try_new(BufWriter::with_capacity(1 << 20, files::create(&path)?), &batches.schema())?;
        let (mut texts, mut rows) = (0, 0);
        let mut batches = std::pin::pin!(coalesce(batches, window));
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            texts += batch.num_rows() as u64;
            let counts = batch.column(batch.num_columns() - 1).as_primitive::<Int64Type>();
            rows += counts.values().iter().sum::<i64>().unsigned_abs();
            writer.write(&batch)?;
        }
        writer.finish()?;
        drop(writer);
        let reader = FileReader::try_new_buffered(files::open(&path)?, None)?;
        Ok(Self { path, reader, columns, window: window as u64, texts, rows })
    }

    /// The size of the file in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.path.metadata().map_or(0, |file| file.len())
    }

    /// Samples about `rows` texts, or all if there are fewer. The sample is spread evenly over the file in groups of
    /// consecutive texts.
    pub(super) fn sample(&self, rows: u64) -> Result<Window, DataFusionError> {
        let reader = FileReader::try_new_buffered(files::open(&self.path)?, None)?;
        let schema = reader.schema();
        let runs = self.texts.div_ceil(SAMPLED_TOGETHER);
        let wanted = rows.div_ceil(SAMPLED_TOGETHER).min(runs);
        let mut starts = (0..wanted).map(|i| i * runs / wanted * SAMPLED_TOGETHER).peekable();
        let (mut parts, mut before) = (Vec::new(), 0);
        let mut reader = reader;
        for index in 0..reader.num_batches() {
            if starts.peek().is_none() {
                break;
            }
            // All batches but the last have `window` rows, so batches can be skipped without reading them.
            let window = self.window;
            if starts.peek().is_some_and(|start| *start >= before + window) {
                before += window;
                continue;
            }
            reader.set_index(index)?;
            let Some(batch) = reader.next().transpose()? else { break };
            while let Some(start) = starts.next_if(|start| *start < before + window) {
                let offset = usize::try_from(start - before).unwrap_or(usize::MAX).min(batch.num_rows());
                parts.push(batch.slice(offset, (SAMPLED_TOGETHER as usize).min(batch.num_rows() - offset)));
            }
            before += window;
        }
        let sample = concat_batches(&schema, &parts)?;
        window_of(&sample, self.columns)
    }

    /// Returns the texts in windows, with the keys of their rows. A text that does not match its key is an error.
    pub(super) fn windows(self) -> impl Stream<Item = Result<(ArrayRef, Window), DataFusionError>> {
        let Self { path, reader, columns, .. } = self;
        futures::stream::iter(reader).map(move |batch| {
            let batch = batch?;
            let (keys, window) = (Arc::clone(batch.column(0)), window_of(&batch, columns)?);
            if window.has_keys(&keys) { Ok((keys, window)) } else { Err(damaged(&path)) }
        })
    }
}

/// Builds a window from a batch with the key in the first column and the texts after it.
fn window_of(batch: &RecordBatch, columns: usize) -> Result<Window, DataFusionError> {
    let text = |i: usize| -> Result<TextColumn, DataFusionError> {
        let name = batch.schema().field(i).name().clone();
        Ok(TextColumn { name, values: text_values(batch.column(i))? })
    };
    let pair = if columns > 1 { Some(text(2)?) } else { None };
    Ok(Window::new(text(1)?, pair))
}

/// Coalesces batches into batches of `rows` rows.
fn coalesce(
    batches: SendableRecordBatchStream,
    rows: usize,
) -> impl Stream<Item = Result<RecordBatch, DataFusionError>> {
    let coalescer = BatchCoalescer::new(batches.schema(), rows);
    futures::stream::try_unfold((batches, coalescer, false), |(mut batches, mut coalescer, mut ended)| async move {
        loop {
            if let Some(batch) = coalescer.next_completed_batch() {
                return Ok(Some((batch, (batches, coalescer, ended))));
            }
            if ended {
                return Ok(None);
            }
            if let Some(batch) = batches.next().await {
                coalescer.push_batch(batch?)?;
            } else {
                coalescer.finish_buffered_batch()?;
                ended = true;
            }
        }
    })
}
