//! Outputs of a run: Parquet files, Delta tables and folders that appear atomically.

mod delta;
mod fit;
pub mod runs;
mod stored;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use couplet_storage::files::{AtomicFile, FileVersion};
use couplet_storage::lock::Explained;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter, encode_arrow_schema};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use thiserror::Error;

pub use delta::{Committed, DeltaSink, Mode, Unpublished, rejected_version};
pub use fit::{Misfit, fitted, narrowed, with_table_types};
pub use runs::{Part, PutCondition};
pub use stored::parquet_problem;

/// Maximum rows of a row group: enough to compress well, few enough for readers to skip groups and read in parallel.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// Maximum bytes of a row group, which writers and readers hold in memory.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// A file that could not be written; an existing file at its path is unchanged.
#[derive(Debug, Error)]
#[error("cannot write {}: {problem}", path.display())]
pub struct SinkError {
    /// The path of the file.
    pub path: PathBuf,
    /// The problem.
    #[source]
    pub problem: Explained,
}

/// The identity of a run in its commits to sinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The run's unique id: letters, digits, `-` and `_`.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The id of the store, which serializes its runs.
    pub store: String,
    /// The key under which rows are appended once; `None` if they replace others.
    pub key: Option<String>,
}

/// A Parquet file before it is published.
pub struct ParquetSink {
    path: PathBuf,
    writer: ArrowWriter<AtomicFile>,
    schema: SchemaRef,
}

impl ParquetSink {
    /// Begins a file that [`ParquetSink::publish`] will move to `path`, with `metadata` in its footer.
    ///
    /// # Errors
    /// A folder that cannot be created or written; a schema that Parquet cannot represent.
    pub fn create(path: &Path, schema: &SchemaRef, metadata: &[(&str, String)]) -> Result<Self, SinkError> {
        let failed = |problem| SinkError { path: path.to_owned(), problem };
        let file = AtomicFile::create(path).map_err(|e| failed(Explained::of(&e)))?;
        let (schema, options) = (stored::schema(schema), writer_options(schema, metadata));
        let writer = ArrowWriter::try_new_with_options(file, Arc::clone(&schema), options);
        let writer = writer.map_err(|e| failed(Explained::of(&e)))?;
        Ok(Self { path: path.to_owned(), writer, schema })
    }

    /// Appends a record batch.
    ///
    /// # Errors
    /// A full or missing disk.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), SinkError> {
        let written = stored::batch(batch, &self.schema).and_then(|batch| self.writer.write(&batch));
        written.map_err(|e| SinkError { path: self.path.clone(), problem: Explained::of(&e) })
    }

    /// Closes the file and moves it into place atomically. Returns its size in bytes.
    ///
    /// # Errors
    /// A full or missing disk; nothing has been published then.
    pub fn publish(self) -> Result<u64, SinkError> {
        self.publish_with(|file, _| file.publish())
    }

    /// Closes the file and atomically replaces the version `seen`. Returns its size in bytes.
    ///
    /// # Errors
    /// A full or missing disk; another version of the file in its place. Nothing has been published then.
    pub fn publish_over(self, seen: &FileVersion) -> Result<u64, SinkError> {
        self.publish_with(|file, path| seen.replaced(path, || file.publish()))
    }

    fn publish_with(mut self, publish: impl FnOnce(AtomicFile, &Path) -> io::Result<u64>) -> Result<u64, SinkError> {
        let failed = |problem| SinkError { path: self.path.clone(), problem };
        // `into_inner` keeps only the text of an error of the disk, so almost everything is written before.
        self.writer.flush().map_err(|e| failed(Explained::of(&e)))?;
        self.writer.sync().map_err(|e| failed(Explained::of(&e)))?;
        let file = self.writer.into_inner().map_err(|e| failed(Explained::of(&e)))?;
        publish(file, &self.path).map_err(|e| failed(Explained::of(&e)))
    }
}

/// Returns writer options for couplet's Parquet files, with the Arrow schema as a hint for readers.
#[must_use]
pub fn writer_options(schema: &SchemaRef, metadata: &[(&str, String)]) -> ArrowWriterOptions {
    let hint = (ARROW_SCHEMA_META_KEY, encode_arrow_schema(&stored::hint(schema)));
    let properties = properties(&[metadata, &[hint]].concat());
    ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true)
}

/// Returns Parquet writer properties, with `metadata` in the footer.
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
