//! One Parquet file of a run in the making, in a folder of this computer or on an object store.

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
use super::upload::{Upload, Uploaded};
use crate::sink::stored;

/// A Parquet file in the making.
pub(crate) struct Part {
    name: String,
    writer: AsyncArrowWriter<Output>,
    schema: SchemaRef,
    rows: u64,
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

    pub(crate) fn on_store(
        store: Arc<dyn ObjectStore>,
        folder: &Path,
        name: String,
        schema: &SchemaRef,
        options: ArrowWriterOptions,
    ) -> Result<Self> {
        let output = Output::Upload(Upload::begin(store, folder.clone().join(name.as_str())), Uploaded::default());
        Self::new(name, output, schema, options)
    }

    fn new(name: String, output: Output, schema: &SchemaRef, options: ArrowWriterOptions) -> Result<Self> {
        let schema = stored::schema(schema);
        let writer = AsyncArrowWriter::try_new_with_options(output, Arc::clone(&schema), options)?;
        Ok(Self { name, writer, schema, rows: 0 })
    }

    pub(crate) async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(&stored::batch(batch, &self.schema)?).await?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Its size so far, about.
    pub(super) fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Ends the file; gives it up if that does not succeed.
    pub(crate) async fn finish(mut self) -> Result<RunFile> {
        if let Err(error) = self.writer.finish().await {
            self.abort().await;
            return Err(error);
        }
        let Uploaded { bytes, etag } = match self.writer.into_inner() {
            Output::File(_, bytes) => Uploaded { bytes, etag: None },
            Output::Upload(_, uploaded) => uploaded,
        };
        Ok(RunFile { name: self.name, rows: self.rows, bytes, etag })
    }

    pub(crate) async fn abort(self) {
        if let Output::Upload(mut upload, _) = self.writer.into_inner() {
            upload.abort().await;
        }
    }
}

enum Output {
    /// With the bytes so far.
    File(BufWriter<File>, u64),
    /// With what is known when it is complete.
    Upload(Upload, Uploaded),
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
                Self::Upload(upload, _) => upload.write(bytes).await.map_err(external),
            }
        }
        .boxed()
    }

    fn complete(&mut self) -> BoxFuture<'_, Result<()>> {
        async move {
            match self {
                // It is made durable together with the folder.
                Self::File(file, _) => Ok(file.flush()?),
                Self::Upload(upload, uploaded) => {
                    *uploaded = upload.finish().await.map_err(external)?;
                    Ok(())
                }
            }
        }
        .boxed()
    }
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}
