//! Commit gate: holds back end-of-stream until the lock is confirmed, for a sink that commits at the end of its input.

use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use tokio::sync::oneshot;

use crate::error::Error;

/// Releases the end of a stream.
pub(super) struct CommitGate {
    ended: oneshot::Receiver<()>,
    pass: oneshot::Sender<()>,
}

/// Returns the stream with its end held back, and the gate that releases it.
pub(super) fn gated(rows: SendableRecordBatchStream) -> (SendableRecordBatchStream, CommitGate) {
    let ((end, ended), (pass, passed)) = (oneshot::channel(), oneshot::channel());
    let last = futures::stream::once(async move {
        let refused = || DataFusionError::Execution("the rows may not be committed".into());
        end.send(()).map_err(|()| refused())?;
        passed.await.map_err(|_| refused())
    });
    let schema = rows.schema();
    let last = last.filter_map(async |passed: Result<(), DataFusionError>| passed.err().map(Err));
    let rows = RecordBatchStreamAdapter::new(schema, rows.chain(last.boxed()));
    (Box::pin(rows), CommitGate { ended, pass })
}

impl CommitGate {
    /// Waits for the end of the stream, and releases it if `check` succeeds. Otherwise the stream ends with an error.
    ///
    /// # Errors
    /// The error of `check`.
    pub(super) async fn pass_if(self, check: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        // If the stream is dropped before its end, nothing is to be committed.
        if self.ended.await.is_ok() {
            check.await?;
            let _ = self.pass.send(());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, RecordBatch};
    use futures::TryStreamExt;

    use super::*;

    fn rows(end: Option<DataFusionError>) -> SendableRecordBatchStream {
        let batch = RecordBatch::try_from_iter([("x", Arc::new(Int32Array::from(vec![1, 2])) as _)]).unwrap();
        let schema = batch.schema();
        Box::pin(RecordBatchStreamAdapter::new(
            schema,
            futures::stream::iter([Ok(batch)].into_iter().chain(end.map(Err))),
        ))
    }

    #[tokio::test]
    async fn the_end_passes_only_after_the_check_succeeds() {
        let (stream, gate) = gated(rows(None));
        let (read, passed) = tokio::join!(stream.try_collect::<Vec<_>>(), gate.pass_if(async { Ok(()) }));
        assert_eq!(read.unwrap().len(), 1);
        passed.unwrap();

        let (stream, gate) = gated(rows(None));
        let no = async { Err(Error::Usage("no".into())) };
        let (read, passed) = tokio::join!(stream.try_collect::<Vec<_>>(), gate.pass_if(no));
        assert!(read.unwrap_err().to_string().contains("may not be committed"));
        assert_eq!(passed.unwrap_err().to_string(), "no");
    }

    #[tokio::test]
    async fn a_failed_or_dropped_stream_runs_no_check() {
        let never = || async { panic!("the check is not called") };
        let (stream, gate) = gated(rows(Some(DataFusionError::Execution("broken".into()))));
        let read = async { stream.try_collect::<Vec<_>>().await };
        let (read, passed) = tokio::join!(read, gate.pass_if(never()));
        assert!(read.unwrap_err().to_string().contains("broken"));
        passed.unwrap();
        let (stream, gate) = gated(rows(None));
        drop(stream);
        gate.pass_if(never()).await.unwrap();
    }
}
