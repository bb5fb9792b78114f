//! Rows of a run, read from the source once and staged on the local disk.
//!
//! A run passes over its rows three times: to check their ids, to find the texts without a score, and to publish.
//! Reading the source each time could return different rows (files change, `random()` and `LIMIT` choose others), would
//! download a remote corpus three times, and would call `predict` three times if the query does. So the rows are read
//! once into a compressed file that is removed when the run ends, however it ends. Joins, distincts and sorts see only
//! keys, numbers and scores. They run in a separate memory pool, whose size does not grow with the rows, and spill next
//! to the file.

use std::io::{self, BufWriter};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast, filter_record_batch, is_not_null, is_null};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use couplet_encoder::scorer::{Rejection, TextColumn, Window};
use couplet_storage::files;
use couplet_storage::objects::Objects;
use couplet_storage::place::Place;
use couplet_tables::predict::{prediction_fields, text_values};
use couplet_tables::session::Resources;
use couplet_tables::sink::{fitted, narrowed};
use couplet_tables::source::in_words;
use couplet_tables::store::{text_error, text_key};
use datafusion::common::{Column, DataFusionError, JoinType};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::functions_aggregate::expr_fn::{count, min};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{DataFrame, ParquetReadOptions, SessionConfig, SessionContext};
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::digest::{Hashing, check, checked_at_end};
use super::joins::{Joins, bytes_of_scores, of_rows, session, without_views};
use super::pending::Pending;
use super::sinks::SinkKind;
use super::zip_by_row::zip_by_row;

/// The position of a row in the source.
const ROW: &str = "__couplet_row";
/// The key of the row's texts.
const KEY: &str = "__couplet_key";
/// The key of a cached score.
const KNOWN: &str = "__couplet_known";
/// The first row with a key.
const FIRST: &str = "__couplet_first";
/// The number of rows that share their texts.
const ROWS: &str = "__couplet_rows";
/// The reason why the texts cannot be scored.
const ERROR: &str = "__couplet_error";

/// Approximate bytes of rows in a row group.
const GROUP: usize = 64 << 20;

/// The staged rows of a run.
pub(super) struct StagedRows {
    context: SessionContext,
    joins: Joins,
    schema: SchemaRef,
    text: Vec<String>,
    window: usize,
    resources: Resources,
    /// The memory limit of the run's plans, in bytes.
    memory: u64,
    rows: u64,
    /// The digest of the file as it was written.
    digest: blake3::Hash,
    /// The uncompressed size of the rows, in bytes.
    size: u64,
    /// The number of labels of the model whose scores are looked up.
    labels: usize,
    rejected: [u64; Rejection::KINDS.len()],
}

impl StagedRows {
    /// Reads all rows of `source` into a file in the folder of `resources`. `labels` is the number of labels of the
    /// model whose scores the rows are joined with.
    ///
    /// # Errors
    /// A source that cannot be read; a full disk.
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
        let staged_schema: Vec<_> = fields.chain([Arc::new(Field::new(ROW, DataType::Int64, false))]).collect();
        let staged_schema = Arc::new(Schema::new(staged_schema));
        let properties = WriterProperties::builder()
            .set_compression(Compression::LZ4_RAW)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_max_row_group_row_count(Some(64 * 1024))
            // A row group is in memory while it is written, and its columns while they are read.
            .set_max_row_group_bytes(Some(GROUP))
            .build();
        let path = resources.folder().join("rows.parquet");
        let file = Hashing::new(BufWriter::with_capacity(1 << 20, files::create(&path)?));
        let mut writer = ArrowWriter::try_new(file, Arc::clone(&staged_schema), Some(properties))?;
        let (mut rows, mut rejected) = (0, [0; Rejection::KINDS.len()]);
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            count_rejections(&batch, text, &mut rejected)?;
            let end = rows + i64::try_from(batch.num_rows()).unwrap_or(i64::MAX);
            let numbers = Int64Array::from_iter_values(rows..end);
            rows = end;
            let columns = batch.columns().iter().cloned().chain([Arc::new(numbers) as ArrayRef]).collect();
            writer.write(&RecordBatch::try_new(Arc::clone(&staged_schema), columns)?)?;
        }
        writer.flush()?;
        let size = writer.flushed_row_groups().iter().map(|group| group.total_byte_size().unsigned_abs()).sum();
        // `into_inner` reduces a disk error to its text, so almost everything is written before, with typed errors.
        writer.sync()?;
        let digest = writer.into_inner()?.finish()?;
        Ok(Self {
            context: session(SessionConfig::new().with_batch_size(window).with_target_partitions(1), runtime),
            joins: Joins::new(memory, &resources)?,
            schema,
            text: text.to_vec(),
            window,
            resources,
            memory,
            rows: rows.unsigned_abs(),
            digest,
            size,
            labels,
            rejected,
        })
    }

    /// The number of rows.
    pub(super) fn len(&self) -> u64 {
        self.rows
    }

    /// The number of rows whose texts cannot be scored, by kind of rejection.
    pub(super) fn rejected(&self) -> [u64; Rejection::KINDS.len()] {
        self.rejected
    }

    /// The columns of the source.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// A session with the full memory limit of the run, for work on the complete rows.
    pub(super) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// A session with the full memory limit of the run, for joining the complete rows with those of a table.
    ///
    /// # Errors
    /// A spill folder that cannot be used.
    pub(super) fn merging(&self) -> Result<SessionContext, DataFusionError> {
        let held = self.size.saturating_add(self.rows.saturating_mul(bytes_of_scores(1, self.labels)));
        // A hash join holds the rows in memory, and fails if they do not fit; a sort-merge join can spill.
        if held < self.memory / 4 {
            return Ok(self.context.clone());
        }
        of_rows(self.memory, held / self.rows.max(1), &self.resources)
    }

    /// A session for joining the rows with `held` scores.
    pub(super) fn joins(&self, held: u64) -> &SessionContext {
        // Grouping a row by its key takes a third of the memory of a score without probabilities.
        self.joins.session_for(bytes_of_scores(held, self.labels).max(bytes_of_scores(self.rows / 3, 0)))
    }

    /// The size of the staged file in bytes.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.resources.folder().join("rows.parquet").metadata()?.len())
    }

    /// The rows in source order, with their position and key.
    pub(super) async fn rows(&self) -> Result<DataFrame, DataFusionError> {
        self.rows_in(&self.joins.hashing).await
    }

    async fn rows_in(&self, context: &SessionContext) -> Result<DataFrame, DataFusionError> {
        let options = ParquetReadOptions::default().file_sort_order(vec![vec![column(ROW).sort(true, false)]]);
        let place = Place::Local(self.resources.folder().join("rows.parquet"));
        // Read as a URL: a path with `[`, `?` or `*` in it would be taken for a glob pattern.
        let url = Objects::open(&place).map_err(|e| DataFusionError::External(Box::new(e)))?.url;
        context.read_parquet(url.as_str(), options).await
    }

    /// The ids of the first `most` rows whose texts cannot be scored.
    pub(super) async fn first_rejected(&self, id: &[String], most: usize) -> Result<Vec<String>, DataFusionError> {
        let ids: Vec<Expr> = id.iter().map(|name| column(name)).collect();
        let rows = self.rows().await?.filter(column(KEY).is_null())?.limit(0, Some(most))?;
        let rows = rows.select(ids)?.collect().await?;
        Ok(rows.iter().map(in_words).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Checks that the rows of a sink fit its table. `which` selects the rows of the sink; `None` selects all. Rows that
    /// the tokenizer rejects count as predictions, as they are not known yet.
    ///
    /// # Errors
    /// The first value that the table cannot hold; a file that cannot be read.
    pub(super) async fn check_fit(&self, table: &Schema, which: Option<SinkKind>) -> Result<(), DataFusionError> {
        let narrowed = narrowed(&self.schema, table);
        if narrowed.is_empty() {
            return Ok(());
        }
        let rows = self.rows().await?;
        let rows = match which {
            None => rows,
            Some(SinkKind::Rejected) => rows.filter(column(KEY).is_null())?,
            Some(SinkKind::Predictions) => rows.filter(column(KEY).is_not_null())?,
        };
        let rows = rows.select(narrowed.iter().map(|field| column(field.name())).collect::<Vec<_>>())?;
        let mut rows = fitted(rows.execute_stream().await?, &Arc::new(Schema::new(narrowed)));
        while rows.next().await.transpose()?.is_some() {}
        Ok(())
    }

    /// Returns the texts without a score in `known`, in order of first occurrence. `held` is the number of scores in
    /// `known`.
    ///
    /// `known` is a table of [`StagedRows::joins`]. Windows have `window` texts, but at most a batch of the session.
    pub(super) async fn pending(&self, known: DataFrame, held: u64, window: usize) -> Result<Pending, DataFusionError> {
        let rows = self.rows_in(self.joins(held)).await?;
        let keys = rows.filter(column(KEY).is_not_null())?.select(vec![column(KEY), column(ROW)])?;
        let mut keys = without_views(keys)?;
        if held > 0 {
            let known = without_views(known.select(vec![col("key").alias(KNOWN)])?)?;
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
        let pending = zip_by_row(texts, keys).map(move |both| {
            let (texts, counts) = both?;
            Ok(RecordBatch::try_new(Arc::clone(&pending), [texts.columns(), &counts].concat())?)
        });
        let pending = Box::pin(RecordBatchStreamAdapter::new(schema, pending));
        Pending::fill(pending, self.text.len(), window.min(self.window), self.resources.folder()).await
    }

    /// Returns the rows of `which` (all, rejected or predicted) in source order, with the source columns followed by
    /// the prediction columns. The stream ends with an error if the staged file has changed.
    ///
    /// `scores` is a table of [`StagedRows::joins`] with `held` scores.
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
        let (known, keys) = (without_views(known)?, without_views(keys)?);
        let scores = known.join(keys, JoinType::Right, &[KNOWN], &[KEY], None)?;
        let scores = scores.sort(vec![column(ROW).sort(true, false)])?;
        let scores = scores.select([column(ROW)].into_iter().chain(predicted()).collect::<Vec<_>>())?;
        let scores = scores.execute_stream().await?;

        let source = self.schema.fields().iter().map(|field| column(field.name()));
        // Recomputed rather than read from the store: the message names the columns as this pipeline does.
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
        let scored = zip_by_row(rows, scores).map(move |both| {
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
        let rows = Box::pin(RecordBatchStreamAdapter::new(schema, scored));
        let path = self.resources.folder().join("rows.parquet");
        Ok(checked_at_end(rows, check(path, self.digest)))
    }
}

/// Counts the rows without a key, by kind of rejection.
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
    use arrow::array::StringArray;
    use datafusion::common::ScalarValue;
    use futures::TryStreamExt;

    use super::*;

    /// 200,000 rows with distinct texts, and memory for a tenth of what their keys and scores take.
    #[tokio::test]
    async fn joins_and_sorts_of_many_rows_need_little_memory() {
        const ROWS: i64 = 200_000;
        let folder = tempfile::tempdir().expect("a folder");
        let resources = Resources::new(1 << 30, folder.path()).expect("resources");
        let text: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| format!("letter {row}"))));
        let texts = RecordBatch::try_from_iter([("text", text)]).expect("rows");
        let source = SessionContext::new().read_batch(texts).expect("a table");
        let staged =
            StagedRows::fill(source, &["text".to_owned()], 2, 8 << 20, resources).await.expect("rows are read");
        let nothing = staged.joins(0).read_empty().expect("a table");
        let pending = staged.pending(nothing, 0, 8192).await.expect("texts are told apart");
        assert_eq!((pending.texts, pending.rows), (ROWS.unsigned_abs(), ROWS.unsigned_abs()));

        // All texts have scores, with strings and numbers in them.
        let held = ROWS.unsigned_abs();
        let value = |field: &Field| match field.data_type() {
            DataType::Utf8 | DataType::Utf8View if field.name() != "error" => lit("a label of some length"),
            other => lit(ScalarValue::try_from(other).expect("a NULL of that type")),
        };
        let predicted = prediction_fields();
        let predicted = predicted.iter().map(|field| value(field).alias(field.name()));
        let rows = staged.rows_in(staged.joins(held)).await.expect("rows");
        let known =
            || rows.clone().select([column(KEY).alias("key")].into_iter().chain(predicted.clone()).collect::<Vec<_>>());
        let scored = staged.scored(known().expect("scores"), held, None).await.expect("a join");
        let scored: Vec<_> = scored.try_collect().await.expect("rows are joined");
        assert_eq!(scored.iter().map(RecordBatch::num_rows).sum::<usize>(), held as usize);
        let pending = staged.pending(known().expect("scores"), held, 8192).await.expect("texts are told apart");
        assert_eq!(pending.texts, 0);
    }
}
