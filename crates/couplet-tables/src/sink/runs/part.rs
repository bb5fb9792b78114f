//! A Parquet file of a run while it is written, in a local folder or on an object store.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path as FilePath;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::AsyncArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::async_writer::AsyncFileWriter;
use parquet::errors::{ParquetError, Result};

use super::RunFile;
use super::upload::{PutCondition, Upload, Uploaded};
use crate::sink::stored;

/// A Parquet file while it is written.
pub struct Part {
    name: String,
    writer: AsyncArrowWriter<Output>,
    schema: SchemaRef,
    rows: u64,
    closed: bool,
}

impl Part {
    pub(super) fn in_folder(
        folder: &FilePath,
        name: String,
        schema: &SchemaRef,
        o: ArrowWriterOptions,
    ) -> Result<Self> {
        let file = File::create_new(folder.join(&name))?;
        let output = Output::File(BufWriter::with_capacity(1 << 20, file), 0);
        Self::new(name, output, schema, o)
    }

    /// Creates a file in an object store.
    ///
    /// # Errors
    /// A schema that Parquet cannot represent.
    pub fn on_store(
        store: Arc<dyn ObjectStore>,
        folder: &Path,
        name: String,
        condition: PutCondition,
        schema: &SchemaRef,
        options: ArrowWriterOptions,
    ) -> Result<Self> {
        let path = folder.clone().join(name.as_str());
        Self::new(name, Output::Upload(Upload::begin(store, path, condition)), schema, options)
    }

    fn new(name: String, output: Output, schema: &SchemaRef, options: ArrowWriterOptions) -> Result<Self> {
        let schema = stored::schema(schema);
        let writer = AsyncArrowWriter::try_new_with_options(output, Arc::clone(&schema), options)?;
        Ok(Self { name, writer, schema, rows: 0, closed: false })
    }

    /// Appends rows.
    ///
    /// # Errors
    /// A failed write.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(&stored::batch(batch, &self.schema)?).await?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the approximate size so far, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Writes the end of the file. An upload becomes visible only in [`Part::finish`].
    ///
    /// # Errors
    /// A failed write.
    pub async fn close(&mut self) -> Result<()> {
        self.closed = true;
        self.writer.finish().await.map(drop)
    }

    /// Completes the file, or aborts it on failure.
    ///
    /// # Errors
    /// A failed write, or an upload that cannot be completed.
    pub async fn finish(mut self) -> Result<RunFile> {
        if !self.closed
            && let Err(error) = self.close().await
        {
            self.abort().await;
            return Err(error);
        }
        let Uploaded { bytes, etag } = match self.writer.into_inner() {
            Output::File(_, bytes) => Uploaded { bytes, etag: None },
            Output::Upload(mut upload) => match upload.finish().await {
                Ok(uploaded) => uploaded,
                Err(error) => {
                    upload.abort().await;
                    return Err(external(error));
                }
            },
        };
        Ok(RunFile { name: self.name, rows: self.rows, bytes, etag })
    }

    /// Deletes what was written.
    pub async fn abort(self) {
        if let Output::Upload(mut upload) = self.writer.into_inner() {
            upload.abort().await;
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "there is one per file that is written")]
enum Output {
    /// The file, and the number of bytes written.
    File(BufWriter<File>, u64),
    Upload(Upload),
}

impl AsyncFileWriter for Output {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        async move {
            match self {
                Self::File(file, written) => {
                    file.write_all(&bytes)?;
                    *written += bytes.len() as u64;
                    Ok(())
                }
                Self::Upload(upload) => upload.write(bytes).await.map_err(external),
            }
        }
        .boxed()
    }

    fn complete(&mut self) -> BoxFuture<'_, Result<()>> {
        async move {
            match self {
                // Synced together with the folder.
                Self::File(file, _) => Ok(file.flush()?),
                Self::Upload(upload) => upload.flush().await.map_err(external),
            }
        }
        .boxed()
    }
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}
