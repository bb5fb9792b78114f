//! The rows of a run on the local disk, read from the source once.
//!
//! A run goes over its rows three times: to check their ids, to find the texts that have no score yet, and to publish.
//! Reading the source each time could give different rows (files change, `random()` and `LIMIT` choose anew), would
//! download a remote corpus three times, and would call `predict` three times where the query does. So the rows are
//! read once into a compressed file that goes when the run ends, however it ends. Joins, distinct and sort over it see
//! keys, numbers and scores only; they run in a memory pool of their own, whose size does not grow with the rows, and
//! spill beside the file.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{BatchCoalescer, cast, concat_batches, filter_record_batch, is_not_null, is_null};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use datafusion::common::{Column, DataFusionError, JoinType};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder};
use datafusion::functions_aggregate::expr_fn::{count, min};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{DataFrame, ParquetReadOptions, SessionConfig, SessionContext};
use deltalake_core::delta_datafusion::planner::DeltaPlanner;
use futures::{Stream, StreamExt};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::beside::beside;
use super::sinks::SinkKind;
use crate::predict::{prediction_fields, text_values};
use crate::scorer::{Rejection, TextColumn, Window};
use crate::session::Resources;
use crate::store::{text_error, text_key};

/// The place of a row in the source.
const ROW: &str = "__couplet_row";
/// The key of its texts.
const KEY: &str = "__couplet_key";
/// The key of a score.
const KNOWN: &str = "__couplet_known";
/// The first row that has a key.
const FIRST: &str = "__couplet_first";
/// Rows that share their texts.
const ROWS: &str = "__couplet_rows";
/// What is wrong with the texts.
const ERROR: &str = "__couplet_error";

/// What remembered scores take in memory when they are looked up by their key, in bytes; rather too much.
///
/// Each has the probabilities of all labels, and those before calibration.
pub(super) fn bytes_of_scores(scores: u64, labels: usize) -> u64 {
    let probabilities = 2 * (size_of::<f32>() as u64) * labels as u64;
    scores.saturating_mul(BYTES_BESIDE_PROBABILITIES.saturating_add(probabilities))
}

/// The key of a score, its label and all else that has one size.
const BYTES_BESIDE_PROBABILITIES: u64 = 184;

/// The memory of joins and sorts over the rows, in bytes. More makes them hardly faster: they pass over their rows once
/// or twice, from the disk or not, while a row costs its forward pass.
const MEMORY: u64 = 96 << 20;

/// Rows that go through joins and sorts together: few, as each file of spilled rows has a batch in memory when they are
/// merged.
const BATCH: usize = 1024;

/// The rows of a run.
pub(super) struct Spool {
    context: SessionContext,
    joins: Joins,
    schema: SchemaRef,
    text: Vec<String>,
    window: usize,
    resources: Resources,
    rows: u64,
    /// Labels of the model whose scores are looked up.
    labels: usize,
    rejected: [u64; Rejection::KINDS.len()],
}

impl Spool {
    /// Reads all rows of `source` into a file in the folder of `resources`; the scores that they are joined with are of a
    /// model with so many labels.
    ///
    /// # Errors
    /// A source that cannot be read; a disk that is full.
    pub(super) async fn fill(
        source: DataFrame,
        text: &[String],
        labels: usize,
        memory: u64,
        resources: Resources,
    ) -> Result<Self, DataFusionError> {
        let schema: SchemaRef = Arc::new(source.schema().as_arrow().clone());
        let (state, _) = source.clone().into_parts();
        let window = state.config().batch_size();
        let runtime = Arc::clone(state.runtime_env());
        let mut batches = source.with_column(KEY, text_key(text))?.execute_stream().await?;
        let keyed = batches.schema();
        let fields = keyed.fields().iter().cloned();
        let spooled: Vec<_> = fields.chain([Arc::new(Field::new(ROW, DataType::Int64, false))]).collect();
        let spooled = Arc::new(Schema::new(spooled));
        let properties = WriterProperties::builder()
            .set_compression(Compression::LZ4_RAW)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_max_row_group_row_count(Some(64 * 1024))
            .build();
        let path = resources.folder().join("rows.parquet");
        let file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        let mut writer = ArrowWriter::try_new(file, Arc::clone(&spooled), Some(properties))?;
        let (mut rows, mut rejected) = (0, [0; Rejection::KINDS.len()]);
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            count_rejections(&batch, text, &mut rejected)?;
            let end = rows + i64::try_from(batch.num_rows()).unwrap_or(i64::MAX);
            let numbers = Int64Array::from_iter_values(rows..end);
            rows = end;
            let columns = batch.columns().iter().cloned().chain([Arc::new(numbers) as ArrayRef]).collect();
            writer.write(&RecordBatch::try_new(Arc::clone(&spooled), columns)?)?;
        }
        io::Write::flush(&mut writer.into_inner()?)?;
        Ok(Self {
            context: session(SessionConfig::new().with_batch_size(window).with_target_partitions(1), runtime),
            joins: Joins::new(memory.min(MEMORY), &resources)?,
            schema,
            text: text.to_vec(),
            window,
            resources,
            rows: rows.unsigned_abs(),
            labels,
            rejected,
        })
    }

    /// The number of rows.
    pub(super) fn len(&self) -> u64 {
        self.rows
    }

    /// The rows whose texts cannot be scored, by the kinds of rejection.
    pub(super) fn rejected(&self) -> [u64; Rejection::KINDS.len()] {
        self.rejected
    }

    /// The columns of the source.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// A session with all the memory of the run, for what comes after the rows.
    pub(super) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// A session for joins of the rows with `held` scores.
    pub(super) fn joins(&self, held: u64) -> &SessionContext {
        // What is grouped by its key takes a third of what a score without probabilities does.
        self.joins.with_room_for(bytes_of_scores(held, self.labels).max(bytes_of_scores(self.rows / 3, 0)))
    }

    /// The bytes of the file, and those of its rows when they are read.
    pub(super) fn bytes(&self) -> Result<(u64, u64), DataFusionError> {
        let path = self.resources.folder().join("rows.parquet");
        let file = File::open(path)?;
        let on_disk = file.metadata()?.len();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file)?;
        let in_memory = metadata.row_groups().iter().map(|group| group.total_byte_size().unsigned_abs()).sum();
        Ok((on_disk, in_memory))
    }

    /// The rows with their place and their key, in their order.
    pub(super) async fn rows(&self) -> Result<DataFrame, DataFusionError> {
        self.rows_in(&self.joins.hashing).await
    }

    async fn rows_in(&self, context: &SessionContext) -> Result<DataFrame, DataFusionError> {
        let options = ParquetReadOptions::default().file_sort_order(vec![vec![column(ROW).sort(true, false)]]);
        context.read_parquet(self.resources.folder().join("rows.parquet").to_string_lossy().into_owned(), options).await
    }

    /// The texts that have no score among `known`, of which there are `held`, in the order in which they first come.
    ///
    /// `known` is a table of [`Spool::joins`].
    pub(super) async fn pending(&self, known: DataFrame, held: u64) -> Result<Pending, DataFusionError> {
        let rows = self.rows_in(self.joins(held)).await?;
        let mut keys = rows.filter(column(KEY).is_not_null())?.select(vec![column(KEY), column(ROW)])?;
        if held > 0 {
            let known = known.select(vec![col("key").alias(KNOWN)])?;
            keys = known.join(keys, JoinType::RightAnti, &[KNOWN], &[KEY], None)?;
        }
        let first = vec![min(column(ROW)).alias(FIRST), count(lit(1)).alias(ROWS)];
        let keys = keys.aggregate(vec![column(KEY)], first)?.select(vec![column(FIRST), column(ROWS)])?;
        let keys = keys.sort(vec![column(FIRST).sort(true, false)])?.execute_stream().await?;
        let texts = [ROW, KEY].into_iter().chain(self.text.iter().map(String::as_str)).map(column);
        let texts = self.rows().await?.select(texts.collect::<Vec<_>>())?.execute_stream().await?;
        let counts = Arc::clone(&keys.schema().fields()[1]);
        let fields = texts.schema().fields().iter().skip(1).cloned().chain([counts]).collect::<Vec<_>>();
        let schema = Arc::new(Schema::new(fields));
        let pending = Arc::clone(&schema);
        let pending = beside(texts, keys).map(move |both| {
            let (texts, counts) = both?;
            Ok(RecordBatch::try_new(Arc::clone(&pending), [texts.columns(), &counts].concat())?)
        });
        let pending = Box::pin(RecordBatchStreamAdapter::new(schema, pending));
        Pending::fill(pending, self.text.len(), self.window, self.resources.folder()).await
    }

    /// All rows with their scores, or those that have an error, or those that have none: the columns of the source and
    /// those of a prediction, in the order of the source.
    ///
    /// `scores` is a table of [`Spool::joins`], with `held` scores.
    pub(super) async fn scored(
        &self,
        scores: DataFrame,
        held: u64,
        which: Option<SinkKind>,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        let fields = prediction_fields();
        let predicted = || fields.iter().map(|field| column(field.name()));
        let known = scores.select(predicted().chain([col("key").alias(KNOWN)]).collect::<Vec<_>>())?;
        let keys = self.rows_in(self.joins(held)).await?.select(vec![column(KEY), column(ROW)])?;
        let scores = known.join(keys, JoinType::Right, &[KNOWN], &[KEY], None)?;
        let scores = scores.sort(vec![column(ROW).sort(true, false)])?;
        let scores = scores.select([column(ROW)].into_iter().chain(predicted()).collect::<Vec<_>>())?;
        let scores = scores.execute_stream().await?;

        let source = self.schema.fields().iter().map(|field| column(field.name()));
        // Said anew, as it calls the columns by the names that they have in this pipeline.
        let error = text_error(&self.text).alias(ERROR);
        let rows =
            self.rows().await?.select([column(ROW)].into_iter().chain(source).chain([error]).collect::<Vec<_>>())?;
        let rows = rows.execute_stream().await?;

        let width = self.schema.fields().len();
        let of_source = rows.schema().fields().iter().skip(1).take(width).cloned().collect::<Vec<_>>();
        let predicted = scores.schema().fields().iter().skip(1).cloned().collect::<Vec<_>>();
        let error = predicted.iter().position(|field| field.name() == "error").unwrap_or_default();
        let schema = Arc::new(Schema::new([of_source, predicted].concat()));
        let output = Arc::clone(&schema);
        let scored = beside(rows, scores).map(move |both| {
            let (rows, mut scores) = both?;
            let of_text = rows.column(width);
            let of_text = cast(of_text, scores[error].data_type())?;
            scores[error] = zip(&is_not_null(&of_text)?, &of_text, &scores[error])?;
            let keep = match which {
                None => None,
                Some(SinkKind::Rejected) => Some(is_not_null(&scores[error])?),
                Some(SinkKind::Predictions) => Some(is_null(&scores[error])?),
            };
            let all = RecordBatch::try_new(Arc::clone(&output), [&rows.columns()[..width], &scores].concat())?;
            Ok(if let Some(keep) = keep { filter_record_batch(&all, &keep)? } else { all })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, scored)))
    }
}

/// Sessions for joins and sorts of numbers, keys and scores, with a memory pool of their own.
struct Joins {
    memory: u64,
    /// In one partition, where rows come in the order of their file.
    hashing: SessionContext,
    /// With both sides of a join sorted, for more than fits.
    sorting: SessionContext,
}

impl Joins {
    fn new(memory: u64, resources: &Resources) -> Result<Self, DataFusionError> {
        let runtime = resources.with_memory(memory)?;
        let config = SessionConfig::new().with_batch_size(BATCH);
        let hashing = config.clone().with_target_partitions(1);
        // DataFusion sorts for a join only where there are several partitions.
        let mut sorting = config.with_target_partitions(2);
        let options = sorting.options_mut();
        options.optimizer.prefer_hash_join = false;
        options.execution.sort_spill_reservation_bytes = usize::try_from(memory / 64).unwrap_or(usize::MAX);
        Ok(Self { memory, hashing: session(hashing, Arc::clone(&runtime)), sorting: session(sorting, runtime) })
    }

    /// The session in which a join fits into memory that holds so many bytes.
    fn with_room_for(&self, held: u64) -> &SessionContext {
        // A join by hash holds one side in memory, and fails where that does not fit; one by sorting can spill.
        if held < self.memory / 3 { &self.hashing } else { &self.sorting }
    }
}

fn session(config: SessionConfig, runtime: Arc<RuntimeEnv>) -> SessionContext {
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        // Which plans everything else as usual.
        .with_query_planner(DeltaPlanner::new());
    SessionContext::new_with_state(state.build())
}
/// Rows that a sample takes together.
const SAMPLED_TOGETHER: u64 = 32;

/// Texts to be scored, each once, in a file.
pub(super) struct Pending {
    path: PathBuf,
    reader: FileReader<BufReader<File>>,
    columns: usize,
    /// Rows of each batch but the last.
    window: u64,
    /// Texts, or pairs.
    pub(super) texts: u64,
    /// Rows that have them.
    pub(super) rows: u64,
}

impl Pending {
    async fn fill(
        batches: SendableRecordBatchStream,
        columns: usize,
        window: usize,
        folder: &Path,
    ) -> Result<Self, DataFusionError> {
        let path = folder.join("pending.arrow");
        let mut writer =
            FileWriter::try_new(BufWriter::with_capacity(1 << 20, File::create(&path)?), &batches.schema())?;
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
        let reader = FileReader::try_new_buffered(File::open(&path)?, None)?;
        Ok(Self { path, reader, columns, window: window as u64, texts, rows })
    }

    /// The bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.path.metadata().map_or(0, |file| file.len())
    }

    /// About so many of the texts, or all where there are fewer, spread evenly over all of them in their order; runs of
    /// neighbours stay together.
    pub(super) fn sample(&self, rows: u64) -> Result<Window, DataFusionError> {
        let reader = FileReader::try_new_buffered(File::open(&self.path)?, None)?;
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
            // Which batch has which rows is known without reading those before it: all but the last are windows.
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

    /// The texts in windows, each with the keys of its rows.
    pub(super) fn windows(self) -> impl Stream<Item = Result<(ArrayRef, Window), DataFusionError>> {
        let columns = self.columns;
        futures::stream::iter(self.reader).map(move |batch| {
            let batch = batch?;
            Ok((Arc::clone(batch.column(0)), window_of(&batch, columns)?))
        })
    }
}

/// The texts of a batch that has them behind their keys.
fn window_of(batch: &RecordBatch, columns: usize) -> Result<Window, DataFusionError> {
    let text = |i: usize| -> Result<TextColumn, DataFusionError> {
        let name = batch.schema().field(i).name().clone();
        Ok(TextColumn { name, values: text_values(batch.column(i))? })
    };
    let pair = if columns > 1 { Some(text(2)?) } else { None };
    Ok(Window::new(text(1)?, pair))
}

/// Gathers batches of any size into batches of `rows` rows.
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

/// Counts the rows that have no key, by the reason.
fn count_rejections(
    batch: &RecordBatch,
    text: &[String],
    rejected: &mut [u64; Rejection::KINDS.len()],
) -> Result<(), DataFusionError> {
    let Some(keys) = batch.column_by_name(KEY).filter(|keys| keys.null_count() > 0) else { return Ok(()) };
    let mut columns = text.iter().filter_map(|name| Some((name, batch.column_by_name(name)?))).map(|(name, values)| {
        Ok::<_, DataFusionError>(TextColumn { name: name.clone(), values: text_values(values)? })
    });
    let Some(first) = columns.next().transpose()? else { return Ok(()) };
    let window = Window::new(first, columns.next().transpose()?);
    for rejection in (0..batch.num_rows()).filter(|&row| keys.is_null(row)).filter_map(|row| window.rejection(row)) {
        rejected[rejection.kind()] += 1;
    }
    Ok(())
}

/// A column by its exact name.
pub(super) fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_more_labels_take_more_memory() {
        assert_eq!(bytes_of_scores(1000, 2), 200_000);
        // Two lists of 32-bit floats.
        assert_eq!(bytes_of_scores(1000, 5000) - bytes_of_scores(1000, 0), 1000 * 2 * 4 * 5000);
        assert_eq!(bytes_of_scores(u64::MAX, 2), u64::MAX);
    }

    #[test]
    fn a_join_with_scores_of_many_labels_is_one_that_can_spill() {
        let resources = Resources::new(1 << 30, &std::env::temp_dir()).unwrap();
        let joins = Joins::new(MEMORY, &resources).unwrap();
        let spills =
            |labels| std::ptr::eq(joins.with_room_for(bytes_of_scores(20_000, labels)), &raw const joins.sorting);
        assert!(!spills(2) && spills(1000));
    }
}
