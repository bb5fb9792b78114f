//! Downloads an object to a local file, in ranges of one version of the object.

use std::io;

use futures::{StreamExt, TryStreamExt};
use object_store::{GetOptions, ObjectMeta};
use tokio::io::AsyncWriteExt;

use super::{Objects, ObjectsError, Trouble};

/// Bytes per request: few enough to arrive before a request times out on a slow connection.
const RANGE: u64 = 8 << 20;

/// The number of concurrent requests.
const REQUESTS: usize = 4;

/// Downloads an object into an empty file, in the version that `object` describes.
///
/// # Errors
/// A server that refuses or fails; an object that has changed since it was listed; a full disk.
pub async fn download(objects: &Objects, object: &ObjectMeta, file: std::fs::File) -> Result<(), ObjectsError> {
    let place = objects.place_of(&object.location);
    let refused = |e: &object_store::Error| match e {
        object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. } => {
            ObjectsError::new(&place, Trouble::Other, "it changed while it was downloaded; run the command again")
        }
        e => objects.error_at(&object.location, e),
    };
    let disk = |e: &io::Error| ObjectsError::new(&place, Trouble::of(e), format!("downloading to the local disk: {e}"));
    let mut file = tokio::fs::File::from_std(file);
    let starts = (0..object.size).step_by(RANGE as usize);
    let mut ranges = futures::stream::iter(starts)
        .map(|start| {
            let range = start..object.size.min(start + RANGE);
            // If the server gives ETags, all ranges are of one version.
            let options = GetOptions { if_match: object.e_tag.clone(), ..GetOptions::default() };
            let options = options.with_range(Some(range.clone()));
            async move {
                let bytes = objects.store.get_opts(&object.location, options).await?.bytes().await?;
                Ok::<_, object_store::Error>((range, bytes))
            }
        })
        .buffered(REQUESTS);
    while let Some((range, bytes)) = ranges.try_next().await.map_err(|e| refused(&e))? {
        if bytes.len() as u64 != range.end - range.start {
            let problem = format!("the server gave {} of {} bytes", bytes.len(), range.end - range.start);
            return Err(ObjectsError::new(&place, Trouble::Unreachable, problem));
        }
        file.write_all(&bytes).await.map_err(|e| disk(&e))?;
    }
    file.flush().await.map_err(|e| disk(&e))
}
