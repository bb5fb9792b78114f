//! The columns of delimited text, told by its first rows.
//!
//! DataFusion's own inference looks for the ends of lines where quotation marks are always `"` and a backslash always
//! escapes, whatever the table says: a file with a lone quotation mark is then not to be read. Here the reader of the
//! rows finds them, with the table's own options.

use std::io::{self, Read};
use std::sync::Arc;

use arrow::csv::reader::Format;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use bytes::{Buf, Bytes};
use datafusion::common::DataFusionError;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Handle;

use super::format::{NO_QUOTE, ROWS_TO_INFER_FROM, file_compression, null_pattern};
use crate::config::CsvOptions;

/// The schema that the first rows of the files have together.
pub(super) async fn schema(
    store: &Arc<dyn ObjectStore>,
    files: &[ObjectMeta],
    options: &CsvOptions,
) -> Result<SchemaRef, DataFusionError> {
    let mut rows = ROWS_TO_INFER_FROM;
    let mut schemas = Vec::new();
    // An empty file has no columns to differ in.
    for file in files.iter().filter(|file| file.size > 0) {
        let bytes = store.get(&file.location).await?.into_stream().map_err(DataFusionError::from).boxed();
        let bytes = file_compression(options.compression).convert_stream(bytes)?;
        let format = format(options)?;
        let read = Handle::current().spawn_blocking(move || format.infer_schema(Blocking::new(bytes), Some(rows)));
        let (schema, read) = read.await.map_err(|e| DataFusionError::External(e.into()))??;
        schemas.push(schema);
        rows -= read;
        if rows == 0 {
            break;
        }
    }
    Ok(Arc::new(Schema::try_merge(schemas)?))
}

fn format(options: &CsvOptions) -> Result<Format, ArrowError> {
    let format = Format::default()
        .with_header(options.header)
        .with_delimiter(options.delimiter)
        .with_quote(options.quote.unwrap_or(NO_QUOTE));
    let Some(null) = null_pattern(options) else { return Ok(format) };
    let null = regex::Regex::new(&null).map_err(|e| ArrowError::from_external_error(e.into()))?;
    Ok(format.with_null_regex(null))
}

/// The bytes of a stream for whoever reads in a thread of its own.
struct Blocking {
    stream: BoxStream<'static, Result<Bytes, DataFusionError>>,
    chunk: Bytes,
    runtime: Handle,
}

impl Blocking {
    fn new(stream: BoxStream<'static, Result<Bytes, DataFusionError>>) -> Self {
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
