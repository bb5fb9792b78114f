//! Provides a model as a local folder. A model in a bucket is downloaded once into the user's cache. A model of a hub
//! is downloaded into the cache that programs using hubs share ([`crate::hub`]).
//!
//! The name of a cached folder is a hash of the model's URI and the versions of its files, so a model that changes in
//! the bucket gets a new folder. The folder appears once it is complete. Concurrent processes wait for the first one.

use std::fs::File;
use std::path::{Path, PathBuf};

use object_store::{ObjectMeta, ObjectStoreExt};

use super::Needed;
use crate::files::{self, AtomicFolder, FolderKind};
use crate::hub;
use crate::objects::{Objects, ObjectsError, Trouble, download};
use crate::place::Place;

/// The local folder of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The model itself, or its copy in a cache.
    pub path: PathBuf,
    /// The commit of a copy from a hub.
    pub revision: Option<String>,
}

impl ModelFolder {
    /// Returns the name of the model at `place` of which this is a copy: its URI, with the commit if it has one. None
    /// for a local model.
    #[must_use]
    pub fn name_of_copy(&self, place: &Place) -> Option<String> {
        match (place, &self.revision) {
            (Place::Local(_), _) => None,
            (Place::Hub(model), Some(commit)) => Some(model.with_revision(commit).to_string()),
            (remote, _) => Some(remote.to_string()),
        }
    }
}

/// Returns the local folder of a model: the model itself or its copy in the cache, downloaded if needed.
///
/// # Errors
/// A model that does not exist or cannot be downloaded.
pub async fn model_folder(place: &Place) -> Result<ModelFolder, ObjectsError> {
    match place {
        Place::Local(path) => Ok(ModelFolder { path: path.clone(), revision: None }),
        Place::Remote(_) => {
            let objects = Objects::open(place)?;
            let files = files(&objects).await?;
            Ok(ModelFolder { path: cached(&objects, &files).await?, revision: None })
        }
        Place::Hub(model) => hub::snapshot_folder(model).await,
    }
}

/// Reads another file of the model's folder, given its local `folder`; none if there is no such file or it is longer
/// than `limit` bytes.
///
/// # Errors
/// A server that refuses or fails, a file that cannot be read.
pub async fn read_model_file(
    place: &Place,
    folder: &ModelFolder,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, ObjectsError> {
    let path = match place {
        Place::Local(_) => folder.path.join(name),
        Place::Hub(model) => match hub::model_file(model, folder, name, limit).await? {
            Some(path) => path,
            None => return Ok(None),
        },
        Place::Remote(_) => {
            let objects = Objects::open(&place.join(name))?;
            if objects.head().await?.is_none_or(|found| found.size > limit) {
                return Ok(None);
            }
            let read = async { objects.store.get(&objects.root).await?.bytes().await };
            return read.await.map(|bytes| Some(bytes.to_vec())).map_err(|e| objects.error(&e));
        }
    };
    if path.metadata().is_ok_and(|found| found.is_file() && found.len() <= limit) {
        let unreadable =
            |e: std::io::Error| ObjectsError::new(place, Trouble::of(&e), format!("cannot read {name}: {e}"));
        return files::read(&path, limit).map(Some).map_err(unreadable);
    }
    Ok(None)
}

/// Lists the files that the model is loaded from, ordered by name.
async fn files(objects: &Objects) -> Result<Vec<ObjectMeta>, ObjectsError> {
    let missing = |problem: &str| ObjectsError::new(&objects.place, Trouble::Missing, problem);
    let listed = objects.store.list_with_delimiter(Some(&objects.root)).await.map_err(|e| objects.error(&e))?;
    let names: Vec<&str> = listed.objects.iter().filter_map(|object| object.location.filename()).collect();
    if names.is_empty() && listed.common_prefixes.is_empty() {
        return Err(missing(
            "does not exist; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or \
             pytorch_model.bin",
        ));
    }
    let mut needed = Needed::among(&names);
    if let Some(index) = needed.index {
        let path = objects.path(index);
        let read = async { objects.store.get(&path).await?.bytes().await };
        needed.add_shards(&read.await.map_err(|e| objects.error_at(&path, &e))?, &names);
    }
    let needed = |object: &ObjectMeta| object.location.filename().is_some_and(|name| needed.files.contains(&name));
    let mut files: Vec<ObjectMeta> = listed.objects.iter().filter(|object| needed(object)).cloned().collect();
    if files.is_empty() {
        return Err(missing("has no file of a model, such as config.json or model.safetensors"));
    }
    files.sort_by(|a, b| a.location.cmp(&b.location));
    Ok(files)
}

/// Returns the cache folder for copies of a remote model; none for a local one.
///
/// # Errors
/// Settings that name no cache folder.
pub fn model_cache(place: &Place) -> Result<Option<PathBuf>, ObjectsError> {
    Ok(match place {
        Place::Local(_) => None,
        Place::Remote(_) => Some(copies(place)?),
        Place::Hub(model) => Some(hub::cache_folder(model)?),
    })
}

fn copies(place: &Place) -> Result<PathBuf, ObjectsError> {
    let cache = dirs::cache_dir().ok_or_else(|| {
        let problem = "there is no folder for downloads; set HOME, or XDG_CACHE_HOME to a folder";
        ObjectsError::new(place, Trouble::Settings, problem)
    })?;
    Ok(cache.join("couplet/models"))
}

/// A folder of the cache: couplet owns all of its files.
const COPY: FolderKind = FolderKind { name: "a copy of a model", marker: "config.json", has: |_| true };

/// Returns the cached folder with these files, downloading them if needed.
async fn cached(objects: &Objects, files: &[ObjectMeta]) -> Result<PathBuf, ObjectsError> {
    let disk = |what: &Path, e: &std::io::Error| {
        ObjectsError::new(&objects.place, Trouble::of(e), format!("downloading to {}: {e}", what.display()))
    };
    let cache = copies(&objects.place)?;
    let folder = cache.join(version(objects, files));
    if is_complete(&folder, files) {
        return Ok(folder);
    }
    std::fs::create_dir_all(&cache).map_err(|e| disk(&cache, &e))?;
    let lock = lock(folder.with_extension("lock")).await.map_err(|e| disk(&cache, &e))?;
    // Another process may have downloaded it meanwhile.
    if !is_complete(&folder, files) {
        let bytes: u64 = files.iter().map(|file| file.size).sum();
        tracing::info!(
            "downloading the model {} ({:.1} MB), once, to {}",
            objects.place,
            bytes as f64 / 1e6,
            folder.display()
        );
        let unfinished = AtomicFolder::create(&folder, &COPY).map_err(|e| disk(&folder, &e))?;
        for object in files {
            let path = unfinished.path().join(object.location.filename().unwrap_or_default());
            let file = files::create(&path).map_err(|e| disk(&path, &e))?;
            download(objects, object, file).await?;
        }
        unfinished.publish().map_err(|e| disk(&folder, &e))?;
    }
    drop(lock);
    Ok(folder)
}

/// Returns a hash of the model's URI and the versions of its files, as a folder name.
fn version(objects: &Objects, files: &[ObjectMeta]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(objects.url.as_str().trim_end_matches('/').as_bytes());
    for file in files {
        // A server without ETags gives modification times.
        let tag = file.e_tag.clone().unwrap_or_else(|| file.last_modified.to_rfc3339());
        for part in [file.location.filename().unwrap_or_default(), &file.size.to_string(), &tag] {
            hasher.update(&[0]).update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Returns true if a folder has all files in their full sizes. A full disk can truncate files, and users can delete
/// them.
fn is_complete(folder: &Path, files: &[ObjectMeta]) -> bool {
    files.iter().all(|file| {
        let path = folder.join(file.location.filename().unwrap_or_default());
        path.metadata().is_ok_and(|found| found.len() == file.size)
    })
}

/// Waits for the lock and takes it. Dropping the returned file releases it.
pub(crate) async fn lock(path: PathBuf) -> std::io::Result<File> {
    let locking = tokio::task::spawn_blocking(move || {
        let file = files::create(&path)?;
        file.lock()?;
        Ok(file)
    });
    locking.await.map_err(std::io::Error::other)?
}
