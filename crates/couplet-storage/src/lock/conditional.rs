//! Conditional puts, retried if their outcome is unknown.
//!
//! `object_store` retries a request that a server answers with a failure. It does not retry a conditional put whose
//! response was lost, because the first attempt may have succeeded and then the second is refused. All callers here
//! know this: after a refusal they read the object.

use std::time::Duration;

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, PutMode, PutPayload, PutResult, Result};

use crate::objects::status_of;

/// The maximum number of attempts per write.
const ATTEMPTS: u32 = 3;

/// Writes an object under a condition. A refusal can mean that an earlier attempt of this same write succeeded.
///
/// # Errors
/// A failed write; an object whose state does not meet the condition in `mode`.
pub async fn put_if(
    store: &dyn ObjectStore,
    path: &Path,
    payload: impl Into<PutPayload>,
    mode: PutMode,
) -> Result<PutResult> {
    let payload = payload.into();
    let mut attempt = 1;
    loop {
        match store.put_opts(path, payload.clone(), mode.clone().into()).await {
            Err(error) if attempt < ATTEMPTS && is_unclear(&error) => {
                tokio::time::sleep(Duration::from_millis(50) * attempt).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Returns true if an error leaves open whether the write took place, or still will.
pub(crate) fn is_unclear(error: &StoreError) -> bool {
    matches!(error, StoreError::Generic { .. }) && !is_not_implemented(error)
}

/// Returns true if a server, or its client, reports that it does not support conditional writes.
pub(super) fn is_not_implemented(error: &StoreError) -> bool {
    matches!(error, StoreError::NotImplemented { .. } | StoreError::NotSupported { .. })
        || status_of(error) == Some(501)
}
