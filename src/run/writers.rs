//! Writers of a run's rows: a Parquet file, an object in a bucket, or a run folder.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use couplet_storage::crash;
use couplet_storage::files::{FileVersion, REPLACED};
use couplet_storage::objects::{Objects, cause_in};
use couplet_storage::trouble::Explained;
use couplet_tables::sink::runs::{Manifest, RunFolder};
use couplet_tables::sink::{ParquetSink, Part, PutCondition, SinkError, writer_options};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use object_store::{Error as StoreError, ObjectMeta};

use super::readable;
use super::run_lock::RunLock;
use crate::error::Error;

/// Confirms the lock for the last time before a commit. The commit itself is conditional on the version that the run
/// saw before.
pub(super) async fn confirmed(lock: &RunLock) -> Result<(), Error> {
    lock.confirm().await?;
    crash::point("publish.confirmed");
    Ok(())
}

pub(super) async fn to_file(
    mut rows: SendableRecordBatchStream,
    path: &Path,
    over: &FileVersion,
    schema: &SchemaRef,
    metadata: &[(&str, String)],
    lock: &RunLock,
) -> Result<u64, Error> {
    let mut sink = ParquetSink::create(path, schema, metadata)?;
    while let Some(batch) = rows.next().await {
        let output = || readable(path).display().to_string();
        sink.write(&batch.map_err(|e| Error::publish(output(), e))?)?;
    }
    crash::point("publish.written");
    confirmed(lock).await?;
    Ok(sink.publish_over(over)?)
}

pub(super) async fn to_object(
    mut rows: SendableRecordBatchStream,
    objects: &Objects,
    over: Option<ObjectMeta>,
    schema: &SchemaRef,
    metadata: &[(&str, String)],
    lock: &RunLock,
) -> Result<u64, Error> {
    let failed = |e: &(dyn std::error::Error + 'static)| {
        let problem = match cause_in(e) {
            Some(StoreError::Precondition { .. }) => REPLACED.into(),
            Some(cause) => objects.error(cause).into(),
            None => Explained::of(e),
        };
        SinkError { path: objects.to_string().into(), problem }
    };
    let folder = objects.root.parent().unwrap_or_default();
    let name = objects.place.name();
    let (store, options) = (Arc::clone(&objects.store), writer_options(schema, metadata));
    let part = Part::on_store(store, &folder, name, PutCondition::IfUnchanged(over), schema, options);
    let mut part = part.map_err(|e| failed(&e))?;
    while let Some(batch) = rows.next().await {
        let written = match batch {
            Ok(batch) => part.write(&batch).await.map_err(|e| failed(&e).into()),
            Err(e) => Err(Error::publish(objects.to_string(), e)),
        };
        if let Err(error) = written {
            part.abort().await;
            return Err(error);
        }
    }
    let closed = part.close().await.map_err(|e| failed(&e).into());
    crash::point("publish.written");
    let ready = match closed {
        Ok(()) => confirmed(lock).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ready {
        part.abort().await;
        return Err(error);
    }
    // The object becomes visible when its upload is completed.
    Ok(part.finish().await.map_err(|e| failed(&e))?.bytes)
}

pub(super) async fn to_runs(
    mut rows: SendableRecordBatchStream,
    mut folder: RunFolder,
    output: &str,
    lock: &RunLock,
) -> Result<Manifest, Error> {
    while let Some(batch) = rows.next().await {
        let written = match batch {
            Ok(batch) => folder.write(&batch).await.map_err(Error::from),
            Err(e) => Err(Error::publish(output, e)),
        };
        if let Err(error) = written {
            folder.abort().await;
            return Err(error);
        }
    }
    // The upload is finished before the lock is confirmed, as it may take long.
    let finished = match folder.finish().await {
        Ok(()) => confirmed(lock).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = finished {
        folder.abort().await;
        return Err(error);
    }
    crash::point("publish.written");
    Ok(folder.commit().await?)
}
