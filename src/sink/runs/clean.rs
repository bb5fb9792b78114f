//! Removes runs: those of a pipeline that died, and those that are older than what is kept.

use std::fs;
use std::path::Path as FilePath;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode};

use super::RunsError;
use super::manifest::{Manifest, REMOVED, STARTED, SUCCESS, Started, Success};
use super::read::{all, folders};
use crate::lock::{Explained, Place, put_if};
use crate::sink::{TEMPORARY, remove_remains};

/// Removes what runs of a pipeline left that are not complete, and of which none is alive.
pub(super) async fn remove_dead(place: &Place, pipeline: &str) -> Result<(), RunsError> {
    let (store, root) = match place {
        Place::Folder(path) => {
            // Hidden folders, each locked by its run for as long as that is alive.
            remove_remains(path, ".run=", |path| fs::remove_dir_all(path));
            return Ok(());
        }
        Place::Objects { store, root, .. } => (store, root),
    };
    for folder in folders(place).await? {
        let suspect = folder.success.is_none_or(|size| size <= REMOVED.len() as u64);
        if folder.started && suspect {
            let path = root.clone().join(folder.name.as_str());
            let removed = remove_objects(store.as_ref(), &path, pipeline).await;
            removed.map_err(|e| RunsError::remove(&format!("{place}/{}", folder.name), place.explain(&e)))?;
        }
    }
    Ok(())
}

/// Removes a run of a pipeline that is not complete from an object store.
///
/// What stays is the note that it was removed, which keeps the run from becoming complete by a write that is still
/// under way. It goes when the folder is looked at again and nothing has come to it: that is, a whole run later.
pub(super) async fn remove_objects(store: &dyn ObjectStore, folder: &Path, pipeline: &str) -> object_store::Result<()> {
    let (started, success) = (folder.clone().join(STARTED), folder.clone().join(SUCCESS));
    let Some(json) = read(store, &started).await? else { return Ok(()) };
    // Runs of other pipelines may be alive.
    if serde_json::from_slice::<Started>(&json).ok().is_none_or(|started| started.pipeline != pipeline) {
        return Ok(());
    }
    let fenced_before = match read(store, &success).await? {
        None => {
            match put_if(store, &success, REMOVED, PutMode::Create).await {
                Ok(_) => {}
                Err(StoreError::AlreadyExists { .. }) => {
                    // The same note, twice; or the run is complete after all, and stays.
                    let found = read(store, &success).await?;
                    if !found.is_some_and(|json| is_removed(&json)) {
                        return Ok(());
                    }
                }
                Err(e) => return Err(e),
            }
            tracing::info!("removing {folder}, left by a run that did not come to its end");
            false
        }
        Some(json) if is_removed(&json) => true,
        Some(_) => return Ok(()),
    };
    let files: Vec<Path> = store
        .list(Some(folder))
        .map_ok(|object| object.location)
        .try_filter(|path| std::future::ready(*path != started && *path != success))
        .try_collect()
        .await?;
    let none = files.is_empty();
    delete(store, files).await?;
    if fenced_before && none {
        // The note on the pipeline last: without it nobody would dare to remove the rest.
        delete(store, vec![success]).await?;
        delete(store, vec![started]).await?;
    }
    Ok(())
}

fn is_removed(json: &[u8]) -> bool {
    matches!(Success::from_json(json), Ok(Success::Removed))
}

async fn read(store: &dyn ObjectStore, path: &Path) -> object_store::Result<Option<Vec<u8>>> {
    match store.get(path).await {
        Ok(found) => Ok(Some(found.bytes().await?.into())),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes objects, of which some may be gone.
async fn delete(store: &dyn ObjectStore, paths: Vec<Path>) -> object_store::Result<()> {
    let paths = futures::stream::iter(paths.into_iter().map(Ok)).boxed();
    let mut deleted = store.delete_stream(paths);
    while let Some(result) = deleted.next().await {
        match result {
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes the oldest complete runs of a pipeline until `keep` are left, but at least one; returns how many went.
///
/// Whoever reads a run while it is removed gets an error, not half of its rows. So keep at least one more than readers
/// look at.
///
/// # Errors
/// A sink that cannot be read or written.
pub async fn remove_older(place: &Place, pipeline: &str, keep: usize) -> Result<usize, RunsError> {
    let mut runs: Vec<Manifest> = all(place).await?;
    runs.retain(|run| run.pipeline == pipeline);
    let surplus = runs.len().saturating_sub(keep.max(1));
    for run in &runs[..surplus] {
        let failed = |problem: Explained| RunsError::remove(&format!("{place}/{}", run.folder()), problem);
        match place {
            Place::Folder(path) => remove_folder(path, run).map_err(|e| failed(e.to_string().into()))?,
            Place::Objects { store, root, .. } => {
                let folder = root.clone().join(run.folder());
                let mut paths = run.paths(root);
                let last = [folder.clone().join(STARTED)];
                // From here on the run is invisible as a whole; if the rest fails, the next run takes it for dead.
                let removed = async {
                    delete(store.as_ref(), vec![folder.join(SUCCESS)]).await?;
                    delete(store.as_ref(), std::mem::take(&mut paths)).await?;
                    delete(store.as_ref(), last.to_vec()).await
                };
                removed.await.map_err(|e| failed(place.explain(&e)))?;
            }
        }
    }
    Ok(surplus)
}

/// Hides a run's folder and removes it; if the removal fails, the next run does it.
fn remove_folder(sink: &FilePath, run: &Manifest) -> std::io::Result<()> {
    let hidden = sink.join(format!(".{}.removed{TEMPORARY}", run.folder()));
    fs::rename(sink.join(run.folder()), &hidden)?;
    fs::remove_dir_all(hidden)
}
