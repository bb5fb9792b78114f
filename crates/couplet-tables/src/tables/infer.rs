//! Infers the columns of text files from the beginning of each file.

use couplet_storage::objects::Objects;
use datafusion::common::DataFusionError;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;

use super::TableFormat;
use super::csv::{CsvColumns, CsvLayout};
use super::diagnose::Broken;
use super::files::Files;
use super::json::{JsonColumns, JsonLayout};
use super::text::{Chunks, Fault, Layout};

/// The total number of decompressed bytes that are read to infer the columns of a table.
const BYTES_TO_INFER_FROM: u64 = 64 << 20;

/// The minimum number of bytes that are read of each file, however many files there are.
const MIN_BYTES_PER_FILE: u64 = 64 << 10;

/// The number of files that are read concurrently.
const CONCURRENT_FILES: usize = 16;

/// Infers the columns of one file from its first bytes.
pub(super) trait ColumnInference: Send + 'static {
    /// The inferred columns.
    type Columns: Send + 'static;

    /// Takes the next bytes, or `None` at the end of the file.
    fn push(&mut self, bytes: Option<&[u8]>) -> Result<(), Fault>;

    /// Returns the columns inferred so far.
    fn finish(self) -> Self::Columns;
}

/// Infers the merged columns of a table's text files. Returns none for other formats.
pub(super) async fn layout(files: &Files, format: &TableFormat) -> Result<Option<Layout>, DataFusionError> {
    let refused = |index: usize, problem: String| {
        let file = files.objects.place_of(&files.list[index].location).to_string();
        DataFusionError::External(Box::new(Broken { file, line: None, problem }))
    };
    Ok(Some(match format {
        TableFormat::Csv(options) => {
            let found = infer_all(files, || CsvColumns::new(options)).await?;
            let columns = found.into_iter().map(|(columns, _)| columns).collect();
            Layout::Csv(CsvLayout::of(columns, options).map_err(|(index, problem)| refused(index, problem))?)
        }
        TableFormat::Json { types } => {
            let found = infer_all(files, JsonColumns::new).await?;
            let is_complete = found.iter().all(|(_, is_complete)| *is_complete);
            let shapes = found.into_iter().map(|(shape, _)| shape).collect();
            Layout::Json(JsonLayout::of(shapes, types, is_complete).map_err(|problem| refused(0, problem))?)
        }
        _ => return Ok(None),
    }))
}

/// Reads the beginning of each file. The flag is true if the file was read to its end.
async fn infer_all<L: ColumnInference>(
    files: &Files,
    new: impl Fn() -> L,
) -> Result<Vec<(L::Columns, bool)>, DataFusionError> {
    let bytes = (BYTES_TO_INFER_FROM / files.list.len().max(1) as u64).max(MIN_BYTES_PER_FILE);
    let mut inferences = Vec::with_capacity(files.list.len());
    for file in &files.list {
        let (objects, file, inference) = (files.objects.clone(), file.location.clone(), new());
        let inference = async move {
            let joined = tokio::spawn(async move { infer_file(&objects, &file, inference, bytes).await }).await;
            joined.map_err(|e| DataFusionError::External(e.into()))?
        };
        inferences.push(inference.boxed());
    }
    stream::iter(inferences).buffered(CONCURRENT_FILES).try_collect().await
}

async fn infer_file<L: ColumnInference>(
    objects: &Objects,
    file: &Path,
    mut inference: L,
    bytes: u64,
) -> Result<(L::Columns, bool), DataFusionError> {
    let mut chunks = Chunks::open(&objects.store, file, 0).await?;
    let mut read = 0;
    while read < bytes {
        let chunk = chunks.next().await.map_err(|e| e.of(objects, file))?;
        inference.push(chunk.as_deref()).map_err(|fault| fault.of(objects, file))?;
        match chunk {
            Some(chunk) => read += chunk.len() as u64,
            None => return Ok((inference.finish(), true)),
        }
    }
    Ok((inference.finish(), false))
}
