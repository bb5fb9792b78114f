//! Writes under a condition, made again where it is not known whether they took place.
//!
//! `object_store` makes a request again where a server answers that it failed, but not one with a condition whose
//! answer was lost on the way: whoever asks must know what a refusal of the second attempt means. Here everybody does,
//! and reads what is there.

use std::time::Duration;

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, PutMode, PutPayload, PutResult, Result};

/// How often a write is tried.
const ATTEMPTS: u32 = 3;

/// Writes an object under a condition. A refusal may be of the same write, made before.
pub(crate) async fn put_if(
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

/// Whether an error leaves open if the write took place, or will.
pub(crate) fn is_unclear(error: &StoreError) -> bool {
    matches!(error, StoreError::Generic { .. }) && !is_not_implemented(error)
}

/// Whether a server, or its client, says that it does not know conditions at all.
pub(super) fn is_not_implemented(error: &StoreError) -> bool {
    matches!(error, StoreError::NotImplemented { .. } | StoreError::NotSupported { .. })
        || error.to_string().contains("501 Not Implemented")
}
