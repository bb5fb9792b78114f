//! Models of the Hugging Face hub, and of servers that speak its protocol: `hf://org/name[@revision][/folder]`.
//!
//! ```text
//! revision ── hub: commit, files ── needed ──▶ blobs/ETAG ◀── snapshots/COMMIT/file ◀── refs/REVISION
//!                                              (fetched, checked)     (links)            (commit)
//! ```
//!
//! Files go to the cache of `huggingface_hub`, in its layout and under its locks: what one program has fetched, the
//! other uses. A commit that is complete there needs no network; neither does anything with `HF_HUB_OFFLINE=1`. Only the
//! files that a model is loaded from are fetched. The crate `hf-hub` knows names, addresses and credentials; what it
//! does not do is done here: it checks no content, resumes whole chunks only, gives up on a lock after five seconds, and
//! does not know some of the variables.

mod api;
mod cache;
mod fetch;
mod problem;
mod settings;

use std::path::PathBuf;

use crate::config::{HubModel, Place};
use crate::model::Needed;
use crate::objects::{ModelFolder, ObjectsError, Trouble};

use api::{Hub, Listing, RemoteFile};
use cache::Snapshot;
use settings::Settings;

/// The files at most that a model may consist of; an index from elsewhere could name any number.
const MOST_FILES: usize = 1000;

/// The folder of the hub's cache.
///
/// # Errors
/// Settings that make no sense.
pub fn cache_folder(model: &HubModel) -> Result<PathBuf, ObjectsError> {
    Ok(Settings::from_env(model)?.cache.path().clone())
}

/// The local folder of a model of the hub: a snapshot in the cache, in which missing files are fetched.
///
/// # Errors
/// A repository, revision or file that is not there, a hub that refuses or cannot be reached, a disk that is full.
pub async fn model_folder(model: &HubModel) -> Result<ModelFolder, ObjectsError> {
    let settings = Settings::from_env(model)?;
    // A commit always means the same files.
    let pinned = Snapshot::of_commit(&settings, model).filter(|_| model.is_pinned());
    if let Some(found) = pinned.filter(Snapshot::is_complete) {
        return Ok(found.into_folder());
    }
    if settings.offline {
        return offline(&settings, model);
    }
    let hub = Hub::new(&settings, model)?;
    let listing = match hub.listing().await {
        Ok(listing) => listing,
        Err(error) if error.trouble == Trouble::Unreachable => {
            // What was fetched before is better than no run tonight.
            let cached = Snapshot::of_revision(&settings, model).filter(Snapshot::is_complete).ok_or(error.clone())?;
            tracing::warn!("{error}; going on with commit {} in the cache", cached.commit());
            return Ok(cached.into_folder());
        }
        Err(error) => return Err(error),
    };
    let snapshot = Snapshot::new(&settings, model, &listing.commit);
    fetch_needed(&hub, &snapshot, &listing).await?;
    if !model.is_pinned() {
        // Last, so that whoever reads the name finds all files.
        snapshot.name(model.revision()).map_err(|e| disk(model, &e))?;
    }
    Ok(snapshot.into_folder())
}

/// The path of another file beside the model's, fetched if need be; none if there is no such file.
///
/// # Errors
/// As [`model_folder`].
pub async fn file_beside(
    model: &HubModel,
    folder: &ModelFolder,
    name: &str,
    limit: u64,
) -> Result<Option<PathBuf>, ObjectsError> {
    let settings = Settings::from_env(model)?;
    let path = folder.path.join(name);
    let (Some(commit), false) = (&folder.revision, path.exists() || settings.offline) else {
        return Ok(Some(path).filter(|path| path.exists()));
    };
    let pinned = model.with_revision(commit);
    let hub = Hub::new(&settings, &pinned)?;
    let listing = match hub.listing().await {
        Ok(listing) => listing,
        // The model itself is there, and can do without.
        Err(error) if error.trouble == Trouble::Unreachable => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(file) = listing.in_folder(model.folder()).into_iter().find(|file| file.name() == name) else {
        return Ok(None);
    };
    if file.size.is_some_and(|size| size > limit) {
        return Ok(None);
    }
    let snapshot = Snapshot::new(&settings, &pinned, commit);
    fetch::all(&hub, &snapshot, &[file]).await?;
    Ok(Some(path))
}

/// The model as it is in the cache.
fn offline(settings: &Settings, model: &HubModel) -> Result<ModelFolder, ObjectsError> {
    let found =
        if model.is_pinned() { Snapshot::of_commit(settings, model) } else { Snapshot::of_revision(settings, model) };
    let mend = format!("run once without {}, or fetch it on another machine and copy the cache", settings::OFFLINE);
    let Some(found) = found else {
        let problem = format!(
            "it is not in the cache, {}, and {} is set; {mend}",
            settings.cache.path().display(),
            settings::OFFLINE
        );
        return Err(ObjectsError::new(&Place::Hub(model.clone()), Trouble::Missing, problem));
    };
    match found.lacks() {
        None => Ok(found.into_folder()),
        Some(lacks) => {
            let path = found.folder().display().to_string();
            let problem = format!("{path} in the cache has no {lacks}, and {} is set; {mend}", settings::OFFLINE);
            Err(ObjectsError::new(&Place::Hub(model.clone()), Trouble::Missing, problem))
        }
    }
}

/// Fetches what the model is loaded from.
async fn fetch_needed(hub: &Hub<'_>, snapshot: &Snapshot, listing: &Listing) -> Result<(), ObjectsError> {
    let files = listing.in_folder(hub.model().folder());
    let names: Vec<&str> = files.iter().map(RemoteFile::name).collect();
    problem::check(hub.model(), listing, &names)?;
    let mut needed = Needed::among(&names);
    if let Some(index) = needed.index {
        let index_file: Vec<RemoteFile> = files.iter().filter(|file| file.name() == index).cloned().collect();
        fetch::all(hub, snapshot, &index_file).await?;
        let text = std::fs::read(snapshot.folder().join(index)).map_err(|e| disk(hub.model(), &e))?;
        needed.add_shards(&text, &names);
    }
    let needed: Vec<RemoteFile> = files.iter().filter(|file| needed.files.contains(&file.name())).cloned().collect();
    if needed.len() > MOST_FILES {
        let problem = format!("it has {} files, more than a model has ({MOST_FILES})", needed.len());
        return Err(ObjectsError::new(&Place::Hub(hub.model().clone()), Trouble::Missing, problem));
    }
    fetch::all(hub, snapshot, &needed).await
}

fn disk(model: &HubModel, error: &std::io::Error) -> ObjectsError {
    ObjectsError::new(&Place::Hub(model.clone()), Trouble::Other, format!("cannot write the cache: {error}"))
}
