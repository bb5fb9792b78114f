//! What a run leaves: a Parquet file, or a checkpoint's folder, that is there whole or not at all.

mod delta;
mod fit;
pub mod runs;
mod stored;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter, encode_arrow_schema};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use thiserror::Error;

use crate::files::{AtomicFile, FileVersion};
use crate::lock::Explained;

pub use delta::{Committed, DeltaSink, Mode, Unpublished, rejected_version};
pub(crate) use fit::{Misfit, as_there, fitted, narrowed};
pub(crate) use runs::{Over, Part};
pub(crate) use stored::parquet_problem;

/// Rows of a row group: enough to compress well, few enough that readers can skip and share the work.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// Bytes of a row group at which it ends early: what the writer holds in memory, and a reader must.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// A file that could not be written; whatever stood in its place before still does.
#[derive(Debug, Error)]
#[error("cannot write {}: {problem}", path.display())]
pub struct SinkError {
    /// The file that was to appear.
    pub path: PathBuf,
    /// What went wrong.
    pub problem: Explained,
}

/// The run that commits to a sink, as its commit says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The run's id, which no other run has: letters, digits, `-` and `_`.
    pub run: String,
    /// The name of its pipeline.
    pub pipeline: String,
    /// The id of its store, whose runs follow each other.
    pub store: String,
    /// The key under which its rows are appended, once; none where they replace others.
    pub key: Option<String>,
}

/// A Parquet file in the making.
pub struct ParquetSink {
    path: PathBuf,
    writer: ArrowWriter<AtomicFile>,
    schema: SchemaRef,
}

impl ParquetSink {
    /// Begins a file that [`ParquetSink::publish`] will put at `path`, with `metadata` in its footer.
    ///
    /// # Errors
    /// A folder that cannot be made or written, a schema that Parquet cannot hold.
    pub fn create(path: &Path, schema: &SchemaRef, metadata: &[(&str, String)]) -> Result<Self, SinkError> {
        let error = |problem: String| SinkError { path: path.to_owned(), problem: problem.into() };
        let file = AtomicFile::create(path).map_err(|e| SinkError { path: path.to_owned(), problem: (&e).into() })?;
        let (schema, options) = (stored::schema(schema), writer_options(schema, metadata));
        let writer = ArrowWriter::try_new_with_options(file, Arc::clone(&schema), options);
        let writer = writer.map_err(|e| error(e.to_string()))?;
        Ok(Self { path: path.to_owned(), writer, schema })
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// A disk that is full or gone.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        let written = stored::batch(batch, &self.schema).and_then(|batch| self.writer.write(&batch));
        written.map_err(|e| SinkError { path: self.path.clone(), problem: e.to_string().into() })
    }

    /// Ends the file and puts it in its place, in one step; returns its size in bytes.
    ///
    /// # Errors
    /// A disk that is full or gone; nothing has been published then.
    pub fn publish(self) -> Result<u64, SinkError> {
        self.publish_with(|file, _| file.publish())
    }

    /// Ends the file and puts it in the place of this one, in one step; returns its size in bytes.
    ///
    /// # Errors
    /// A disk that is full or gone, another file in its place; nothing has been published then.
    pub fn publish_over(self, seen: &FileVersion) -> Result<u64, SinkError> {
        self.publish_with(|file, path| seen.replaced(path, || file.publish()))
    }

    fn publish_with(self, publish: impl FnOnce(AtomicFile, &Path) -> io::Result<u64>) -> Result<u64, SinkError> {
        let error = |problem: String| SinkError { path: self.path.clone(), problem: problem.into() };
        let file = self.writer.into_inner().map_err(|e| error(e.to_string()))?;
        publish(file, &self.path).map_err(|e| error(e.to_string()))
    }
}

/// How couplet writes a Parquet file of its own, with the schema as a hint for Arrow's readers.
pub(crate) fn writer_options(schema: &SchemaRef, metadata: &[(&str, String)]) -> ArrowWriterOptions {
    let hint = (ARROW_SCHEMA_META_KEY, encode_arrow_schema(&stored::hint(schema)));
    let properties = properties(&[metadata, &[hint]].concat());
    ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true)
}

/// How couplet writes Parquet, with `metadata` in the footer.
#[must_use]
pub fn properties(metadata: &[(&str, String)]) -> WriterProperties {
    let metadata = metadata.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_created_by(concat!("couplet ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata))
        .build()
}
