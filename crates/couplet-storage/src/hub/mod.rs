//! Models of the Hugging Face hub and of servers with its API: `hf://org/name[@revision][/folder]`.
//!
//! ```text
//! revision ── hub: commit, files ── needed ──▶ blobs/ETAG ◀── snapshots/COMMIT/file ◀── refs/REVISION
//!                                              (fetched, checked)     (links)            (commit)
//! ```
//!
//! Files go to the cache of `huggingface_hub`, in its layout and under its locks, so both programs share downloads. A
//! commit that is complete in the cache needs no network. With `HF_HUB_OFFLINE=1` no request is sent at all. A branch
//! or tag is resolved to a commit once per process. Only the files that a model is loaded from are fetched.
//!
//! The crate `hf-hub` provides names, URLs and credentials. Downloads are implemented here, because it does not verify
//! contents, resumes whole chunks only, gives up on a lock after five seconds, and lacks some environment variables.

mod api;
mod cache;
mod fetch;
mod folder;
mod needed;
mod problem;
mod revision;
mod settings;

use std::path::PathBuf;

use crate::files::{self, MAX_JSON};
use crate::objects::{ObjectsError, Trouble};
use crate::place::{HubModel, Place};

pub use folder::{ModelFolder, model_cache, model_folder, read_model_file};
pub use needed::CALIBRATION_FILE;
pub use needed::{Needed, PICKLE, SAFETENSORS, SENTENCE_TRANSFORMERS, is_weights};

use api::{Hub, Listing, RemoteFile};
use cache::{Gap, Snapshot};
use settings::{OFFLINE, Settings};

/// The maximum number of files of a model: an untrusted index could name any number.
const MAX_FILES: usize = 1000;

/// Returns the folder of the hub's cache.
///
/// # Errors
/// Invalid settings.
pub fn cache_folder(model: &HubModel) -> Result<PathBuf, ObjectsError> {
    Ok(Settings::from_env(model)?.cache.path().clone())
}

/// Returns the local folder of a hub's model: a snapshot in the cache, after fetching its missing files.
///
/// # Errors
/// A repository, revision or file that does not exist; a hub that refuses or cannot be reached; a full disk.
pub async fn snapshot_folder(model: &HubModel) -> Result<ModelFolder, ObjectsError> {
    let settings = Settings::from_env(model)?;
    if model.is_pinned() {
        // A commit always means the same files.
        let snapshot = Snapshot::new(&settings, model, model.revision());
        if snapshot.gap().is_none() {
            return Ok(snapshot.into_folder());
        }
    }
    let resolved = revision::resolve(&settings, model).await?;
    let snapshot = Snapshot::new(&settings, model, &resolved.commit);
    let Some(listing) = &resolved.listing else {
        return from_cache(&settings, model, snapshot, resolved.unreachable.as_ref());
    };
    let hub = Hub::new(&settings, model)?;
    fetch_needed(&hub, &snapshot, listing).await?;
    if !model.is_pinned() {
        // This comes last, so that a reader of the name finds all files.
        snapshot.name(model.revision()).map_err(|e| disk(model, &e))?;
    }
    Ok(snapshot.into_folder())
}

/// Returns the path of another file in the model's folder, fetched if needed. Returns `None` if there is no such file
/// or if it is longer than `limit` bytes.
///
/// # Errors
/// As [`snapshot_folder`].
pub async fn model_file(
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
    let snapshot = Snapshot::new(&settings, &pinned, commit);
    if snapshot.is_absent(name) {
        return Ok(None);
    }
    let hub = Hub::new(&settings, &pinned)?;
    let listing = match hub.listing().await {
        Ok(listing) => listing,
        // The model itself is available, and this file is optional.
        Err(error) if error.trouble == Trouble::Unreachable => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(file) = listing.in_folder(model.folder()).into_iter().find(|file| file.name() == name) else {
        record_absent(&snapshot, name);
        return Ok(None);
    };
    if file.size.is_some_and(|size| size > limit) {
        return Ok(None);
    }
    fetch::all(&hub, &snapshot, &[file]).await?;
    Ok(Some(path))
}

/// Returns the model as it is in the cache, for offline use or while the hub cannot be reached.
fn from_cache(
    settings: &Settings,
    model: &HubModel,
    snapshot: Snapshot,
    unreachable: Option<&ObjectsError>,
) -> Result<ModelFolder, ObjectsError> {
    let missing = |problem: String| {
        let error = ObjectsError::new(&Place::Hub(model.clone()), Trouble::Missing, problem);
        Err(unreachable.cloned().unwrap_or(error))
    };
    if !snapshot.folder().is_dir() {
        return missing(not_cached(settings, model));
    }
    let path = snapshot.folder().display().to_string();
    match snapshot.gap() {
        None => {}
        Some(Gap::Missing(file)) => {
            return missing(format!("{path} in the cache has no {file}, and {OFFLINE} is set; {}", how_to_fix()));
        }
        Some(Gap::Incomplete(files)) => {
            return missing(format!(
                "{path} in the cache is not complete: a download ended before {}, and {OFFLINE} is set; {}",
                join_names(&files),
                how_to_fix()
            ));
        }
        // transformers does the same with a cached snapshot.
        Some(Gap::NotRequested(files)) => tracing::warn!(
            "{path} in the cache was fetched by another program, which did not request {}: the model is used \
             without that; to be sure, run once while the hub can be reached",
            join_names(&files)
        ),
    }
    if let Some(error) = unreachable {
        // A run with the cached model is better than a failed run.
        tracing::warn!("{error}; using commit {} from the cache", snapshot.commit());
    }
    Ok(snapshot.into_folder())
}

/// Explains why a model is not available from the cache.
fn not_cached(settings: &Settings, model: &HubModel) -> String {
    let cache = settings.cache.path().display();
    match &Snapshot::commits(settings, model)[..] {
        [] => format!("it is not in the cache, {cache}, and {OFFLINE} is set; {}", how_to_fix()),
        commits if model.is_pinned() || commits.len() > 3 => {
            format!("this commit of it is not in the cache, {cache}, and {OFFLINE} is set; {}", how_to_fix())
        }
        commits => format!(
            "the cache, {cache}, does not know which commit `{}` is, and {OFFLINE} is set; it has files of commit {}, of \
             which a download may not have ended; {}",
            model.revision(),
            commits.join(", "),
            how_to_fix()
        ),
    }
}

fn how_to_fix() -> String {
    format!("run once without {OFFLINE}, or fetch it on another machine and copy the cache")
}

/// Joins names as `a`, `a and b` or `a, b and c`.
fn join_names(names: &[String]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        names => names.concat(),
    }
}

/// Records that a commit has no such file. If the cache is read-only, nothing is recorded and a later run requests the
/// file again.
fn record_absent(snapshot: &Snapshot, name: &str) {
    if let Err(e) = snapshot.record_absent(name) {
        tracing::debug!("cannot note in the cache that commit {} has no {name}: {e}", snapshot.commit());
    }
}

/// Fetches the files that the model is loaded from.
async fn fetch_needed(hub: &Hub<'_>, snapshot: &Snapshot, listing: &Listing) -> Result<(), ObjectsError> {
    let files = listing.in_folder(hub.model().folder());
    let names: Vec<&str> = files.iter().map(RemoteFile::name).collect();
    problem::check(hub.model(), listing, &names)?;
    // This comes before the files, so that `Snapshot::gap` recognizes a snapshot with a missing file as unfinished.
    for absent in Needed::candidates().filter(|name| !names.contains(name)) {
        record_absent(snapshot, absent);
    }
    let mut needed = Needed::among(&names);
    if let Some(index) = needed.index {
        let index_file: Vec<RemoteFile> = files.iter().filter(|file| file.name() == index).cloned().collect();
        fetch::all(hub, snapshot, &index_file).await?;
        let text = files::read(&snapshot.folder().join(index), MAX_JSON).map_err(|e| disk(hub.model(), &e))?;
        needed.add_shards(&text, &names);
    }
    let mut needed: Vec<RemoteFile> =
        files.iter().filter(|file| needed.files.contains(&file.name())).cloned().collect();
    needed.sort_by_key(|file| file.name() != CALIBRATION_FILE);
    if needed.len() > MAX_FILES {
        let problem = format!("it has {} files, and a model may have at most {MAX_FILES}", needed.len());
        return Err(ObjectsError::new(&Place::Hub(hub.model().clone()), Trouble::Missing, problem));
    }
    fetch::all(hub, snapshot, &needed).await
}

fn disk(model: &HubModel, error: &std::io::Error) -> ObjectsError {
    ObjectsError::new(&Place::Hub(model.clone()), Trouble::of(error), format!("cannot write the cache: {error}"))
}
