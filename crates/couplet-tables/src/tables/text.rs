//! Text files as a `DataFusion` source: CSV and JSON Lines, whole or split into byte ranges, optionally compressed.
//!
//! `DataFusion`'s own readers match CSV columns by position, reformat values and name no file in their errors, so rows
//! are decoded here. The modules `csv` and `json` implement the two formats.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::{Buf, Bytes};
use couplet_storage::objects::Objects;
use couplet_storage::place::Place;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{PhysicalExpr, apply_expression_roots};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use memchr::memchr_iter;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::csv::{CsvLayout, CsvRows};
use super::diagnose::Broken;
use super::format::compression_of;
use super::json::{JsonLayout, JsonRows};

/// The bytes per read.
const CHUNK: usize = 256 << 10;

/// The maximum number of chunks queued for decoding.
const CHUNKS_AHEAD: usize = 4;

/// A record batch ends once it holds this many bytes of text, however few rows it has.
pub(super) const MAX_BATCH_BYTES: usize = 64 << 20;

/// A problem in a file and its line.
#[derive(Debug)]
pub(super) struct Fault {
    /// The line, counted from 1 at the byte where reading began.
    pub(super) line: Option<u64>,
    pub(super) problem: String,
}

impl Fault {
    pub(super) fn at(line: u64, problem: impl Into<String>) -> Self {
        Self { line: Some(line), problem: problem.into() }
    }

    /// Turns the fault into an error that names the file.
    pub(super) fn of(self, objects: &Objects, file: &Path) -> DataFusionError {
        let file = objects.place_of(file).to_string();
        DataFusionError::External(Box::new(Broken { file, line: self.line, problem: self.problem }))
    }
}

/// Decodes the bytes of a file.
pub(super) trait Rows: Send {
    /// Takes the next bytes, or `None` at the end of the file, and appends the complete batches to `batches`. Returns
    /// false if no more bytes are needed.
    fn read(&mut self, bytes: Option<&[u8]>, batches: &mut VecDeque<RecordBatch>) -> Result<bool, Fault>;
}

/// Schema and options shared by all files of a table.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Layout {
    Csv(CsvLayout),
    Json(JsonLayout),
}

impl Layout {
    pub(super) fn schema(&self) -> &SchemaRef {
        match self {
            Self::Csv(layout) => layout.schema(),
            Self::Json(layout) => layout.schema(),
        }
    }

    /// Creates a decoder for the bytes from `start` on. It returns the rows that begin before `end`.
    fn rows(&self, schema: SchemaRef, batch_size: usize, (start, end): (u64, u64)) -> Result<Box<dyn Rows>> {
        Ok(match self {
            // CSV files are never split: a line break may be inside a field.
            Self::Csv(layout) => Box::new(CsvRows::new(layout, schema, batch_size)),
            Self::Json(layout) => Box::new(JsonRows::new(layout, schema, batch_size, start, end)?),
        })
    }
}

/// The decompressed bytes of a file, read by another thread.
pub(super) struct Chunks(mpsc::Receiver<Result<Bytes, Unreadable>>);

/// The reason why no further bytes can be read.
pub(super) enum Unreadable {
    /// The store (server or disk) returned an error.
    Store(DataFusionError),
    /// The file is broken.
    Fault(Fault),
}

impl Unreadable {
    pub(super) fn of(self, objects: &Objects, file: &Path) -> DataFusionError {
        match self {
            Self::Store(e) => e,
            Self::Fault(fault) => fault.of(objects, file),
        }
    }
}

impl Chunks {
    /// Opens a file at byte `start`, which must be 0 for a compressed file.
    pub(super) async fn open(store: &Arc<dyn ObjectStore>, file: &Path, start: u64) -> Result<Self> {
        let options = GetOptions { range: (start > 0).then_some(GetRange::Offset(start)), ..GetOptions::default() };
        let bytes: Box<dyn Read + Send> = match store.get_opts(file, options).await?.payload {
            GetResultPayload::File(mut file, _) => {
                file.seek(SeekFrom::Start(start))?;
                Box::new(file)
            }
            GetResultPayload::Stream(stream) => Box::new(Blocking::new(stream)),
        };
        let compression = compression_of(file.filename().unwrap_or_default());
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || {
            let sent = read_chunks(bytes, compression, start == 0, |chunk| sender.blocking_send(Ok(chunk)).is_ok());
            if let Err(e) = sent {
                // The receiver may be gone.
                let _ = sender.blocking_send(Err(e));
            }
        });
        Ok(Self(receiver))
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Unreadable> {
        self.0.recv().await.transpose()
    }
}

/// Reads and decompresses bytes until the end of the file or until the receiver is dropped.
fn read_chunks(
    bytes: Box<dyn Read + Send>,
    compression: FileCompressionType,
    is_start: bool,
    mut send: impl FnMut(Bytes) -> bool,
) -> Result<(), Unreadable> {
    let mut bytes = compression.convert_read(bytes).map_err(Unreadable::Store)?;
    let mut is_first = is_start;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = (&mut bytes).take(CHUNK as u64).read_to_end(&mut chunk);
        let failed = |problem: String| Unreadable::Fault(Fault { line: None, problem });
        if let Err(e) = read {
            return Err(match e.downcast::<object_store::Error>() {
                Ok(e) => Unreadable::Store(DataFusionError::ObjectStore(Box::new(e))),
                Err(e) if !compression.is_compressed() => Unreadable::Store(e.into()),
                Err(e) => {
                    failed(format!("it cannot be decompressed: {e}; was it cut off while it was written or copied?"))
                }
            });
        }
        let compressed = [(&b"\x1F\x8B"[..], "gzip", ".gz"), (b"\x28\xB5\x2F\xFD", "zstd", ".zst")];
        let found = compressed.iter().find(|(magic, ..)| is_first && chunk.starts_with(magic));
        if let Some((_, name, ending)) = found {
            return Err(failed(format!(
                "it is compressed with {name}, and its name does not end in {ending}; rename it"
            )));
        }
        is_first = false;
        if chunk.is_empty() || !send(chunk.into()) {
            return Ok(());
        }
    }
}

/// Blocking reader over an asynchronous byte stream, for use on its own thread.
struct Blocking {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
    runtime: Handle,
}

impl Blocking {
    fn new(stream: BoxStream<'static, object_store::Result<Bytes>>) -> Self {
        Self { stream, chunk: Bytes::new(), runtime: Handle::current() }
    }
}

impl Read for Blocking {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.chunk.has_remaining() {
            match self.runtime.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let bytes = into.len().min(self.chunk.remaining());
        self.chunk.copy_to_slice(&mut into[..bytes]);
        Ok(bytes)
    }
}

/// The `DataFusion` file source for the text files of a table.
#[derive(Clone)]
pub struct TextSource {
    layout: Arc<Layout>,
    objects: Objects,
    /// True if a file may be read as several byte ranges in parallel.
    is_divisible: bool,
    table_schema: TableSchema,
    projection: SplitProjection,
    batch_size: usize,
    metrics: ExecutionPlanMetricsSet,
}

impl TextSource {
    pub(super) fn new(layout: Arc<Layout>, objects: Objects, is_divisible: bool, table_schema: TableSchema) -> Self {
        let is_divisible = is_divisible && matches!(*layout, Layout::Json(_));
        let projection = SplitProjection::unprojected(&table_schema);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { layout, objects, is_divisible, table_schema, projection, batch_size: 8192, metrics }
    }
}

/// The state that another process needs in addition to the plan to read the files in the same way.
#[derive(Serialize, Deserialize)]
struct SerializedSource<L> {
    layout: L,
    place: Place,
    is_divisible: bool,
}

impl TextSource {
    /// Serializes the source to JSON, without the files and the projection, which are part of the plan.
    ///
    /// # Errors
    /// An option without a JSON form.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let (place, is_divisible) = (self.objects.place.clone(), self.is_divisible);
        serde_json::to_vec(&SerializedSource { layout: &*self.layout, place, is_divisible })
    }

    /// Deserializes a source sent by another process.
    ///
    /// # Errors
    /// JSON that is not of such a source, or a place that cannot be opened.
    pub fn from_json(json: &[u8], table_schema: TableSchema) -> Result<Self> {
        let sent: SerializedSource<Layout> =
            serde_json::from_slice(json).map_err(|e| DataFusionError::External(Box::new(e)))?;
        let objects = Objects::open(&sent.place).map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(Self::new(Arc::new(sent.layout), objects, sent.is_divisible, table_schema))
    }
}

impl FileSource for TextSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        _: &FileScanConfig,
        _: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let file_schema = self.table_schema.file_schema();
        let opener = TextOpener {
            layout: Arc::clone(&self.layout),
            objects: self.objects.clone(),
            schema: Arc::new(file_schema.project(&self.projection.file_indices)?),
            batch_size: self.batch_size,
            store,
        };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), file_schema)
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Arc::new(Self { batch_size, ..self.clone() })
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        let projection = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema.file_schema(), &projection);
        Ok(Some(Arc::new(Self { projection, ..self.clone() })))
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &'static str {
        match *self.layout {
            Layout::Csv(_) => "csv",
            Layout::Json(_) => "json",
        }
    }

    fn supports_repartitioning(&self) -> bool {
        self.is_divisible
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.projection.source.iter(), f)
    }
}

/// Opens the files of a table.
struct TextOpener {
    layout: Arc<Layout>,
    objects: Objects,
    schema: SchemaRef,
    batch_size: usize,
    store: Arc<dyn ObjectStore>,
}

impl fmt::Debug for TextOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextOpener").finish_non_exhaustive()
    }
}

/// A file that is being read.
struct Reading {
    chunks: Chunks,
    rows: Box<dyn Rows>,
    batches: VecDeque<RecordBatch>,
    is_done: bool,
    store: Arc<dyn ObjectStore>,
    objects: Objects,
    file: Path,
    start: u64,
}

impl FileOpener for TextOpener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let piece = file.range.as_ref();
        // A byte range contains the lines that begin in it. Whether a line begins at its first byte is decided by the
        // byte before it.
        let (start, end) = piece
            .map_or((0, u64::MAX), |piece| (piece.start.unsigned_abs().saturating_sub(1), piece.end.unsigned_abs()));
        let rows = self.layout.rows(Arc::clone(&self.schema), self.batch_size, (start, end))?;
        let (store, objects) = (Arc::clone(&self.store), self.objects.clone());
        let file = file.object_meta.location;
        Ok(Box::pin(async move {
            let chunks = Chunks::open(&store, &file, start).await?;
            let batches = VecDeque::new();
            let reading = Reading { chunks, rows, batches, is_done: false, store, objects, file, start };
            Ok(stream::try_unfold(reading, |mut reading| async move {
                Ok(reading.next().await?.map(|batch| (batch, reading)))
            })
            .boxed())
        }))
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.batches.pop_front() {
                return Ok(Some(batch));
            }
            if self.is_done {
                return Ok(None);
            }
            let chunk = match self.chunks.next().await {
                Ok(chunk) => chunk,
                Err(e) => return Err(e.of(&self.objects, &self.file)),
            };
            match self.rows.read(chunk.as_deref(), &mut self.batches) {
                Ok(needs_more) => self.is_done = !needs_more || chunk.is_none(),
                Err(mut fault) => {
                    if let Some(line) = &mut fault.line {
                        *line += lines_before(&self.store, &self.file, self.start).await?;
                    }
                    return Err(fault.of(&self.objects, &self.file));
                }
            }
        }
    }
}

/// Counts the lines of a file before byte `start`.
async fn lines_before(store: &Arc<dyn ObjectStore>, file: &Path, start: u64) -> Result<u64> {
    let (mut lines, mut left) = (0, start);
    if left > 0 {
        let mut before = store.get(file).await?.into_stream();
        while let Some(chunk) = before.next().await.transpose()? {
            let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            lines += memchr_iter(b'\n', &chunk[..bytes]).count() as u64;
            left -= bytes as u64;
            if left == 0 {
                break;
            }
        }
    }
    Ok(lines)
}

/// Returns the `[tables]` entry that reads a column as text, for messages.
pub(super) fn as_text(column: &str) -> String {
    let is_bare =
        column.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) && !column.is_empty();
    let key = if is_bare { column.to_owned() } else { format!("{column:?}") };
    format!("{{ uri = \"…\", types = {{ {key} = \"text\" }} }}")
}
