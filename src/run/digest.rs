//! Digests of temporary files: computed while a file is written, and verified before a commit.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use couplet_storage::files;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

/// A writer that computes the digest of its output.
pub(super) struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: blake3::Hasher::new() }
    }

    /// Flushes the file and returns its digest.
    pub(super) fn finish(mut self) -> io::Result<blake3::Hash> {
        self.inner.flush()?;
        Ok(self.hasher.finalize())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Verifies a file against its digest.
///
/// # Errors
/// A file that was changed or cannot be read.
pub(super) async fn check(path: PathBuf, digest: blake3::Hash) -> Result<(), DataFusionError> {
    let read = tokio::task::spawn_blocking(move || -> io::Result<(PathBuf, blake3::Hash)> {
        let digest = blake3::Hasher::new().update_reader(files::open(&path)?)?.finalize();
        Ok((path, digest))
    });
    let (path, found) = read.await.map_err(|e| DataFusionError::External(Box::new(e)))??;
    if found == digest { Ok(()) } else { Err(damaged(&path)) }
}

/// The error for a damaged temporary file of this run.
pub(super) fn damaged(path: &Path) -> DataFusionError {
    let path = path.display();
    DataFusionError::Execution(format!(
        "{path} has changed since this run wrote it: the disk is faulty, or another program changed the file. Run the \
         same command again, or name another folder with run.spill"
    ))
}

/// Appends `check` to a stream: its error becomes the last item.
pub(super) fn checked_at_end(
    rows: SendableRecordBatchStream,
    check: impl Future<Output = Result<(), DataFusionError>> + Send + 'static,
) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let end = futures::stream::once(check).filter_map(async |checked| checked.err().map(Err));
    Box::pin(RecordBatchStreamAdapter::new(schema, rows.chain(end.boxed())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::record_batch::RecordBatch;
    use datafusion::prelude::SessionContext;
    use futures::TryStreamExt;

    use super::super::staged_rows::StagedRows;
    use super::*;
    use couplet_tables::session::Resources;

    const ROWS: i64 = 300;

    async fn staged(folder: &Path) -> (StagedRows, PathBuf) {
        let resources = Resources::new(1 << 30, folder).unwrap();
        let rows = resources.folder().join("rows.parquet");
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| format!("letter {row}"))));
        let batch = RecordBatch::try_from_iter([("id", ids), ("text", texts)]).unwrap();
        let source = SessionContext::new().read_batch(batch).unwrap();
        (StagedRows::fill(source, &["text".to_owned()], 2, 8 << 20, resources).await.unwrap(), rows)
    }

    fn flip(path: &Path, at: usize, bit: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1 << bit;
        std::fs::write(path, bytes).unwrap();
    }

    /// An empty table of scores.
    fn scores(staged: &StagedRows) -> datafusion::prelude::DataFrame {
        let fields = couplet_tables::predict::prediction_fields();
        let key = Arc::new(arrow::datatypes::Field::new("key", arrow::datatypes::DataType::Binary, false));
        let fields = fields.iter().cloned().chain([key]).collect::<Vec<_>>();
        let none = RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::new(fields)));
        staged.joins(0).read_batch(none).unwrap()
    }

    #[tokio::test]
    async fn a_flipped_bit_in_the_staged_rows_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let (staged, path) = staged(folder.path()).await;
        let rows = async || -> Result<usize, DataFusionError> {
            let batches: Vec<_> = staged.scored(scores(&staged), 0, None).await?.try_collect().await?;
            Ok(batches.iter().map(RecordBatch::num_rows).sum())
        };
        assert_eq!(rows().await.unwrap(), ROWS as usize);
        let bytes = std::fs::read(&path).unwrap();
        for at in (4..bytes.len() - 8).step_by(bytes.len() / 40) {
            flip(&path, at, at % 8);
            assert!(rows().await.is_err(), "byte {at} of {}", bytes.len());
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(rows().await.unwrap(), ROWS as usize);
    }

    #[tokio::test]
    async fn a_flipped_bit_in_a_pending_text_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let (staged, rows) = staged(folder.path()).await;
        let path = rows.with_file_name("pending.arrow");
        for flipped in [false, true] {
            let none = staged.joins(0).read_empty().unwrap();
            let pending = staged.pending(none, 0, 64).await.unwrap();
            if flipped {
                let bytes = std::fs::read(&path).unwrap();
                let at = bytes.windows(10).position(|bytes| bytes == b"letter 200").expect("the text is in the file");
                flip(&path, at, 1);
            }
            let read: Result<Vec<_>, _> = pending.windows().try_collect().await;
            match read {
                Ok(windows) if !flipped => assert_eq!(windows.len(), 5),
                Err(error) if flipped => {
                    assert!(error.to_string().contains("has changed since this run wrote it"), "{error}");
                }
                other => panic!("{flipped}: {other:?}"),
            }
        }
    }
}
