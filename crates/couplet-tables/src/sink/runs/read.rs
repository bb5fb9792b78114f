//! Complete runs of a sink, according to their manifests.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path as FilePath;

use couplet_storage::files::{self, MAX_JSON};
use couplet_storage::lock::Place;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStore, ObjectStoreExt as _};

use super::RunsError;
use super::manifest::{Manifest, REMOVED, STARTED, SUCCESS, Success, sequence_of};

/// Maximum attempts to list the sink, if runs are removed between listing and reading.
const ATTEMPTS: usize = 5;

/// Manifests read concurrently.
const READS_IN_FLIGHT: usize = 16;

/// Returns the newest complete run of a sink, if any.
///
/// # Errors
/// A sink or a manifest that cannot be read.
pub async fn latest(place: &Place) -> Result<Option<Manifest>, RunsError> {
    for _ in 0..ATTEMPTS {
        let mut gone = false;
        for folder in folders(place).await?.iter().rev().filter(|folder| folder.success.is_some()) {
            match manifest(place, folder).await? {
                Found::Manifest(manifest) => return Ok(Some(*manifest)),
                Found::Removed => {}
                // An older run must not be taken for the newest, and there may be a newer one by now.
                Found::Gone => {
                    gone = true;
                    break;
                }
            }
        }
        if !gone {
            return Ok(None);
        }
    }
    Err(RunsError::read(place, "runs are removed faster than they can be read"))
}

/// Returns all complete runs of a sink, oldest first.
///
/// # Errors
/// A sink or a manifest that cannot be read.
pub async fn all(place: &Place) -> Result<Vec<Manifest>, RunsError> {
    'again: for _ in 0..ATTEMPTS {
        let folders = folders(place).await?;
        let complete = folders.iter().filter(|folder| folder.success.is_some());
        let mut found = futures::stream::iter(complete.map(|folder| manifest(place, folder)).collect::<Vec<_>>())
            .buffered(READS_IN_FLIGHT);
        let mut manifests = Vec::new();
        while let Some(found) = found.try_next().await? {
            match found {
                Found::Manifest(manifest) => manifests.push(*manifest),
                Found::Removed => {}
                Found::Gone => continue 'again,
            }
        }
        return Ok(manifests);
    }
    Err(RunsError::read(place, "runs are removed faster than they can be read"))
}

/// Returns the runs of a sink that readers see: all, or the newest. With `published_in`, only those that this other
/// sink has too.
///
/// # Errors
/// A sink or a manifest that cannot be read.
pub async fn readable(place: &Place, all: bool, published_in: Option<&Place>) -> Result<Vec<Manifest>, RunsError> {
    let of = async |place: &Place| {
        if all { self::all(place).await } else { Ok(latest(place).await?.into_iter().collect()) }
    };
    let Some(published_in) = published_in else { return of(place).await };
    let published: Vec<String> = of(published_in).await?.into_iter().map(|manifest| manifest.run_id).collect();
    let mut runs = self::all(place).await?;
    runs.retain(|run| published.contains(&run.run_id));
    Ok(runs)
}

/// Returns the sequence number of the newest complete run of a sink, if any.
pub(super) async fn last_sequence(place: &Place) -> Result<Option<u64>, RunsError> {
    Ok(folders(place).await?.iter().rev().find(|folder| folder.is_complete()).map(|folder| folder.sequence))
}

/// A run's folder in a listing.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub(super) sequence: u64,
    pub(super) name: String,
    /// The size of `_SUCCESS`, if it exists.
    pub(super) success: Option<u64>,
    /// True if `_STARTED` exists.
    pub(super) started: bool,
    /// The other objects; not listed for a local folder.
    pub(super) files: Vec<Path>,
}

impl Folder {
    /// Returns true if the run is complete. A `_SUCCESS` that marks a removed run is smaller than any manifest.
    pub(super) fn is_complete(&self) -> bool {
        self.success.is_some_and(|size| size > REMOVED.len() as u64)
    }
}

/// Returns true if a place has run folders, complete or not.
///
/// # Errors
/// A place that cannot be read.
pub async fn has_run_folders(place: &Place) -> Result<bool, RunsError> {
    Ok(!folders(place).await?.is_empty())
}

/// Lists the run folders of a sink by sequence number, complete or not.
pub(super) async fn folders(place: &Place) -> Result<Vec<Folder>, RunsError> {
    match place {
        Place::Folder(path) => local_folders(path).map_err(|e| RunsError::read(place, &e)),
        Place::Objects { store, root, .. } => {
            remote_folders(store.as_ref(), root).await.map_err(|e| RunsError::read(place, place.explain(&e)))
        }
    }
}

fn local_folders(sink: &FilePath) -> std::io::Result<Vec<Folder>> {
    let entries = match sink.read_dir() {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(sequence) = sequence_of(&name) {
            let success = fs::metadata(sink.join(&name).join(SUCCESS)).ok().map(|file| file.len());
            folders.push(Folder { sequence, name, success, ..Folder::default() });
        }
    }
    folders.sort_by(|a, b| (a.sequence, &a.name).cmp(&(b.sequence, &b.name)));
    Ok(folders)
}

async fn remote_folders(store: &dyn ObjectStore, root: &Path) -> object_store::Result<Vec<Folder>> {
    let mut folders = BTreeMap::new();
    let mut objects = store.list(Some(root));
    while let Some(ObjectMeta { location, size, .. }) = objects.try_next().await? {
        let Some(mut parts) = location.prefix_match(root) else { continue };
        let (Some(name), Some(file)) = (parts.next(), parts.next()) else { continue };
        let Some(sequence) = sequence_of(name.as_ref()) else { continue };
        let key = (sequence, name.as_ref().to_owned());
        let folder: &mut Folder = folders.entry(key).or_default();
        (folder.sequence, folder.name) = (sequence, name.as_ref().to_owned());
        match file.as_ref() {
            SUCCESS => folder.success = Some(size),
            STARTED => folder.started = true,
            _ => folder.files.push(location.clone()),
        }
    }
    Ok(folders.into_values().collect())
}

pub(super) enum Found {
    Manifest(Box<Manifest>),
    /// The run died and is marked as removed.
    Removed,
    /// The run was removed after it was listed.
    Gone,
}

/// Reads the manifest of a run.
pub(super) async fn manifest(place: &Place, folder: &Folder) -> Result<Found, RunsError> {
    let name = format!("{place}/{}/{SUCCESS}", folder.name);
    let json = match place {
        Place::Folder(path) => match files::read(&path.join(&folder.name).join(SUCCESS), MAX_JSON) {
            Ok(json) => json,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Gone),
            Err(e) => return Err(RunsError::read(&name, e.to_string())),
        },
        Place::Objects { store, root, .. } => {
            let path = root.clone().join(folder.name.as_str()).join(SUCCESS);
            let json = match store.get(&path).await {
                Ok(found) => found.bytes().await,
                Err(e) => Err(e),
            };
            match json {
                Ok(json) => json.into(),
                Err(StoreError::NotFound { .. }) => return Ok(Found::Gone),
                Err(e) => return Err(RunsError::read(&name, place.explain(&e))),
            }
        }
    };
    match Success::from_json(&json) {
        Ok(Success::Complete(manifest)) if manifest.folder() != folder.name => {
            let problem =
                format!("it is the manifest of {}; rename the folder to that, or remove it", manifest.folder());
            Err(RunsError::read(&name, problem))
        }
        Ok(Success::Complete(manifest)) => Ok(Found::Manifest(manifest)),
        Ok(Success::Removed) => Ok(Found::Removed),
        Err(problem) => Err(RunsError::read(&name, problem)),
    }
}
