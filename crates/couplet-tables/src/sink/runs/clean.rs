//! Removal of runs: dead or fenced runs of a pipeline, and runs beyond the number to keep.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path as FilePath;

use couplet_storage::files::{self, MAX_JSON, TEMPORARY, folder_of, remove_leftovers};
use couplet_storage::lock::{Explained, Place, put_if};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode};

use super::RunsError;
use super::manifest::{Manifest, REMOVED, RUN_FOLDER, STARTED, SUCCESS, Started, Success, is_part};
use super::read::{all, folders};
use crate::sink::Origin;

/// Removes the hidden folders of dead runs, and of runs that `next` fences even if they are alive. `own` is the folder
/// of `next`.
pub(super) fn fence_folders(own: &FilePath, next: &Origin) -> io::Result<()> {
    let sink = folder_of(own);
    // A live run holds a lock on its folder.
    remove_leftovers(sink, ".run=", |path| RUN_FOLDER.remove(path));
    for entry in sink.read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(".run=") || !name.ends_with(TEMPORARY) || entry.path() == own {
            continue;
        }
        let started = entry.path().join(STARTED);
        let started =
            files::read(&started, MAX_JSON).ok().and_then(|json| serde_json::from_slice::<Started>(&json).ok());
        if started.is_some_and(|started| started.is_fenced_by(next)) {
            tracing::info!("removing {}, left by an unfinished run", entry.path().display());
            // Renaming is atomic: either the run's own rename comes first and it is complete, or the run finds nothing
            // to rename.
            let hidden = sink.join(format!("{}.removed{TEMPORARY}", name.trim_end_matches(TEMPORARY)));
            match fs::rename(entry.path(), &hidden) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // Under its hidden name it is harmless; the next run removes it.
                renamed => drop(renamed.map(|()| RUN_FOLDER.remove(&hidden))?),
            }
        }
    }
    Ok(())
}

/// Fences runs on an object store and removes their files, if `next` fences them. `own` is the folder of `next`.
pub(super) async fn fence_objects(place: &Place, own: &Path, next: &Origin) -> Result<(), RunsError> {
    let Place::Objects { store, root, .. } = place else { return Ok(()) };
    for folder in folders(place).await? {
        let path = root.clone().join(folder.name.as_str());
        if folder.started && !folder.is_complete() && path != *own {
            let removed = remove_objects(store.as_ref(), &path, next).await;
            removed.map_err(|e| RunsError::remove(&format!("{place}/{}", folder.name), place.explain(&e)))?;
        }
    }
    Ok(())
}

/// Removes an incomplete run from an object store, if `next` fences it.
///
/// A `_SUCCESS` object that marks it as removed stays, so that a late write cannot complete the run. `_STARTED` is
/// removed on a later visit that finds no new files.
pub(super) async fn remove_objects(store: &dyn ObjectStore, folder: &Path, next: &Origin) -> object_store::Result<()> {
    let (started, success) = (folder.clone().join(STARTED), folder.clone().join(SUCCESS));
    let Some(json) = read(store, &started).await? else { return Ok(()) };
    // Runs that `next` does not fence may be alive.
    if !serde_json::from_slice::<Started>(&json).is_ok_and(|started| started.is_fenced_by(next)) {
        return Ok(());
    }
    let fenced_before = match read(store, &success).await? {
        None => {
            match put_if(store, &success, REMOVED, PutMode::Create).await {
                Ok(_) => {}
                Err(StoreError::AlreadyExists { .. }) => {
                    // Either the run is already marked as removed, or it has completed after all and stays.
                    let found = read(store, &success).await?;
                    if !found.is_some_and(|json| is_removed(&json)) {
                        return Ok(());
                    }
                }
                Err(e) => return Err(e),
            }
            tracing::info!("removing {folder}, left by an unfinished run");
            false
        }
        Some(json) if is_removed(&json) => true,
        Some(_) => return Ok(()),
    };
    let files = files(store, folder).await?;
    let none = files.is_empty();
    delete(store, files).await?;
    if fenced_before && none {
        delete(store, vec![started]).await?;
    }
    Ok(())
}

/// Removes the files of a run that aborts before it has created its manifest.
pub(super) async fn withdraw(store: &dyn ObjectStore, folder: &Path) -> object_store::Result<()> {
    delete(store, files(store, folder).await?).await?;
    // The start marker goes last: without it, no other run would remove the rest.
    delete(store, vec![folder.clone().join(STARTED)]).await
}

/// Lists the data files in a run's folder.
async fn files(store: &dyn ObjectStore, folder: &Path) -> object_store::Result<Vec<Path>> {
    let objects = store.list(Some(folder)).map_ok(|object| object.location);
    let is_own = |path: &Path| path.filename().is_some_and(|name| is_part(name) && *path == folder.clone().join(name));
    objects.try_filter(|path| std::future::ready(is_own(path))).try_collect().await
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

/// Deletes objects, some of which may not exist.
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

/// Removes the oldest complete runs of a pipeline until `keep` are left, but at least one. Returns the number removed.
///
/// A reader of a run that is being removed gets an error rather than half of its rows. So keep at least one more run
/// than readers use.
///
/// # Errors
/// A sink that cannot be read or written.
pub async fn remove_older(place: &Place, pipeline: &str, keep: usize) -> Result<usize, RunsError> {
    let mut runs: Vec<Manifest> = all(place).await?;
    runs.retain(|run| run.pipeline == pipeline);
    let surplus = runs.len().saturating_sub(keep.max(1));
    for run in &runs[..surplus] {
        remove(place, run).await?;
    }
    Ok(surplus)
}

/// Removes a complete run.
///
/// # Errors
/// A sink that cannot be written.
pub async fn remove(place: &Place, run: &Manifest) -> Result<(), RunsError> {
    let failed = |problem: Explained| RunsError::remove(&format!("{place}/{}", run.folder()), problem);
    match place {
        Place::Folder(path) => remove_folder(path, run).map_err(|e| failed((&e).into())),
        Place::Objects { store, root, .. } => {
            let folder = root.clone().join(run.folder());
            // Without its manifest the run is invisible; if the rest fails, the next run treats it as dead.
            let removed = async {
                delete(store.as_ref(), vec![folder.clone().join(SUCCESS)]).await?;
                delete(store.as_ref(), run.paths(root)).await?;
                delete(store.as_ref(), vec![folder.join(STARTED)]).await
            };
            removed.await.map_err(|e| failed(place.explain(&e)))
        }
    }
}

/// Hides a run's folder, then removes the run's files. If the removal fails, the next run does it. Foreign files stay,
/// in the folder under its old name.
fn remove_folder(sink: &FilePath, run: &Manifest) -> io::Result<()> {
    let folder = sink.join(run.folder());
    let hidden = sink.join(format!(".{}.removed{TEMPORARY}", run.folder()));
    fs::rename(&folder, &hidden)?;
    RUN_FOLDER.remove(&hidden)?;
    if hidden.exists() { fs::rename(&hidden, &folder) } else { Ok(()) }
}
