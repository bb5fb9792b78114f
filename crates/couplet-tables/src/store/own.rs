//! Store marker: couplet uses only folders that it created as a store, and removes only its own files.
//!
//! `<store>/couplet-store.json` holds the version of the store's format and the store's id. A folder that has other
//! files and no marker is rejected before anything in it is read or written. A store of the previous version has no
//! marker; it gets one if all its entries have names that couplet uses.

use std::fs;
use std::path::Path as FilePath;

use couplet_storage::lock::{self, LockError};
use couplet_storage::objects::{Entries, Objects, StoreFolder};
use couplet_storage::place::Place;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StoreError;
use super::names::{ID, id_of, is_hex, is_id, is_of_a_store, without_staging};
use crate::delta::LOG;

/// File name of the marker.
pub(super) const MARKER: &str = "couplet-store.json";

/// Version of the store's format.
const FORMAT: u32 = 1;

/// Maximum size of a marker in bytes.
const MAX_MARKER_BYTES: u64 = 4096;

/// The folders of a store.
const FOLDERS: [&str; 4] = ["scores", "runs", "uploads", "cluster"];

/// Content of the marker.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// Version of the format.
    couplet_store: u32,
    /// The store's id, which is the prefix of its file names.
    id: String,
    /// Detects a damaged marker.
    checksum: String,
}

impl Marker {
    fn new(id: &str) -> Self {
        let checksum = blake3::hash(format!("couplet store {FORMAT} {id}").as_bytes()).to_hex();
        Self { couplet_store: FORMAT, id: id.to_owned(), checksum: checksum[..ID].to_owned() }
    }

    fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("texts and numbers can be written as JSON");
        json.push(b'\n');
        json
    }
}

/// The result of inspecting a store's place.
enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// A store without a marker, with the id in its file names, if any.
    Unmarked(Option<String>),
    /// A store with its id.
    Store(String),
}

/// Opens an existing store; `None` if there is none. Creates nothing.
///
/// # Errors
/// A folder that is not a store; a place that cannot be read.
pub async fn open_existing(place: &Place) -> Result<Option<StoreFolder>, StoreError> {
    let objects = Objects::open(place)?;
    Ok(match find(&objects).await? {
        Found::Nothing => None,
        Found::Unmarked(id) => Some(StoreFolder::new(objects, &id.unwrap_or_default())),
        Found::Store(id) => Some(StoreFolder::new(objects, &id)),
    })
}

/// Opens a store, or creates it, and checks that the server honours conditional puts.
///
/// # Errors
/// A folder that is not a store; a place that cannot be written, or that cannot hold a lock.
pub async fn open(place: &Place) -> Result<StoreFolder, StoreError> {
    let objects = Objects::open(place)?;
    let found = find(&objects).await?;
    let id = match &found {
        Found::Store(id) | Found::Unmarked(Some(id)) => id.clone(),
        Found::Nothing | Found::Unmarked(None) => Uuid::new_v4().simple().to_string()[..ID].to_owned(),
    };
    // All probe writes have the same content, so even a server that ignores conditions damages nothing.
    let probed = lock::probe(&objects.lock_place(), MARKER, &Marker::new(&id).to_json()).await;
    if let (Found::Nothing, Err(LockError::Unsafe { .. })) = (&found, &probed) {
        objects.remove(&objects.path(MARKER)).await?;
    }
    probed?;
    if let Found::Store(id) = found {
        return Ok(StoreFolder::new(objects, &id));
    }
    // Another run may have created it concurrently, with another id.
    match find(&objects).await? {
        Found::Store(id) => Ok(StoreFolder::new(objects, &id)),
        Found::Nothing | Found::Unmarked(_) => Err(refused(&objects, &format!("has lost its {MARKER}; run again"))),
    }
}

fn refused(objects: &Objects, problem: &str) -> StoreError {
    StoreError::Unsuitable { place: objects.to_string(), problem: problem.to_owned() }
}

async fn find(objects: &Objects) -> Result<Found, StoreError> {
    if let Place::Local(folder) = &objects.place {
        check_kinds(objects, folder)?;
    }
    let path = objects.path(MARKER);
    let marker = match objects.store.get(&path).await {
        Err(object_store::Error::NotFound { .. }) => return unmarked(objects).await,
        Ok(found) if found.meta.size > MAX_MARKER_BYTES => None,
        found => {
            let bytes = match found {
                Ok(found) => found.bytes().await,
                Err(e) => Err(e),
            };
            serde_json::from_slice::<Marker>(&bytes.map_err(|e| objects.error_at(&path, &e))?).ok()
        }
    };
    match marker {
        Some(marker) if marker.couplet_store > FORMAT => Err(refused(
            objects,
            &format!(
                "has format {} and this version of couplet knows {FORMAT}; update couplet, or name another store",
                marker.couplet_store
            ),
        )),
        Some(marker) if marker.checksum == Marker::new(&marker.id).checksum && is_id(&marker.id) => {
            Ok(Found::Store(marker.id))
        }
        _ => Err(refused(
            objects,
            &format!(
                "has a damaged {MARKER}; remove that file and run again: it is written anew, and no score is lost"
            ),
        )),
    }
}

/// Rejects special files and links under names that couplet uses: reading them could block, or lead out of the store.
fn check_kinds(objects: &Objects, folder: &FilePath) -> Result<(), StoreError> {
    for name in [MARKER, lock::LOCK] {
        if folder.join(name).symlink_metadata().is_ok_and(|found| !found.is_file()) {
            return Err(refused(objects, &format!("has {name}, which is not a regular file; name another store")));
        }
    }
    for name in FOLDERS {
        if folder.join(name).symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            return Err(refused(objects, &format!("has {name}, which is not a folder; name another store")));
        }
    }
    Ok(())
}

/// Checks whether a folder without a marker is empty, or a store of the previous version.
async fn unmarked(objects: &Objects) -> Result<Found, StoreError> {
    let mut names = Vec::new();
    if objects.place.local().is_some() {
        walk(objects, &mut Vec::new(), &mut names).await?;
    } else {
        let mut list = objects.store.list(Some(&objects.root));
        while let Some(meta) = list.try_next().await.map_err(|e| objects.error(&e))? {
            names.extend(
                meta.location
                    .prefix_match(&objects.root)
                    .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>()),
            );
        }
    }
    let mut id = None;
    for name in &names {
        let parts: Vec<&str> = name.iter().map(String::as_str).collect();
        if !is_of_a_store(&parts, None) {
            return Err(refused(
                objects,
                &format!(
                    "is not empty and was not made by couplet: it has {}. A store is a folder of its own; name one that is \
                     empty or not there yet",
                    name.join("/")
                ),
            ));
        }
        id = id.or_else(|| id_of(parts.last()?).map(str::to_owned));
    }
    Ok(if names.is_empty() { Found::Nothing } else { Found::Unmarked(id) })
}

/// Collects the entries of a local folder, without descending into folders that couplet does not create.
async fn walk(objects: &Objects, above: &mut Vec<String>, names: &mut Vec<Vec<String>>) -> Result<(), StoreError> {
    // The place itself may be a symbolic link.
    let objects = match &objects.place {
        Place::Local(path) if above.is_empty() => {
            Objects::open(&Place::Local(couplet_storage::files::real_path(path)))?
        }
        _ => objects.clone(),
    };
    let Entries { files, folders, others } = objects.entries().await?;
    let with = |name: String| above.iter().cloned().chain([name]).collect::<Vec<_>>();
    names.extend(files.into_iter().map(|file| file.name).chain(others).map(with));
    for folder in folders {
        let known = match &above[..] {
            [] => FOLDERS.contains(&folder.as_str()),
            [of] if of == "scores" => folder == LOG || folder.starts_with("model="),
            [of] if of == "runs" => folder == LOG,
            [of] if of == "cluster" => is_hex(&folder, 32),
            _ => false,
        };
        let below = objects.folder(&folder);
        if !known {
            names.push(above.iter().cloned().chain([folder]).collect());
            continue;
        }
        above.push(folder);
        Box::pin(walk(&below, above, names)).await?;
        above.pop();
    }
    Ok(())
}

/// Removes files of a store that were left half-written by a killed process. Returns their number.
///
/// Only the run that holds the lock may call this. A local store writes `name#123` and renames it once complete; its
/// listings skip such files. In a bucket there are none.
///
/// # Errors
/// A folder that cannot be read; a file that cannot be removed.
pub fn remove_staged(store: &StoreFolder) -> std::io::Result<u64> {
    let Place::Local(root) = &store.objects.place else { return Ok(0) };
    let mut removed = 0;
    let mut folders = vec![Vec::<String>::new()];
    while let Some(parts) = folders.pop() {
        let folder = parts.iter().fold(root.clone(), |folder, part| folder.join(part));
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Symbolic links are neither files nor folders here.
            let kind = entry.file_type()?;
            let names: Vec<&str> = parts.iter().map(String::as_str).chain([&*name]).collect();
            if kind.is_file() && without_staging(&name).is_some() && is_of_a_store(&names, Some(store.id())) {
                fs::remove_file(entry.path())?;
                removed += 1;
            } else if kind.is_dir() && (!parts.is_empty() || FOLDERS.contains(&&*name)) && parts.len() < 2 {
                folders.push(parts.iter().cloned().chain([name]).collect());
            }
        }
    }
    Ok(removed)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const UUID: &str = "05493cfe-fd2f-4010-81bd-9092a42365fe";
    const ID: &str = "0123456789abcdef";

    #[test]
    fn only_unfinished_files_of_the_store_are_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        let part = format!("part-00000-{UUID}-c000.snappy.parquet");
        let go = [
            format!("{MARKER}#1"),
            format!("scores/model=1/{ID}-1-00.parquet#17046467313378935449"),
            format!("runs/{part}#1"),
            "runs/_delta_log/00000000000000000099.json#5".to_owned(),
        ];
        let other = "f".repeat(16);
        let stay = [
            "notes#1".to_owned(),
            "scores/a#1".to_owned(),
            "runs/b.parquet#2".to_owned(),
            format!("scores/model=1/{other}-1-00.parquet#1"),
            format!("scores/model=1/{ID}-1-00.parquet"),
            format!("mine/{part}#1"),
            format!("scores/model=1/deep/{ID}-1-00.parquet#1"),
        ];
        for path in go.iter().chain(&stay) {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), "x").unwrap();
        }
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join(format!("{ID}-1-00.parquet#1")), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("scores/model=2")).unwrap();
        let store = StoreFolder::new(Objects::open(&Place::Local(root.to_owned())).unwrap(), ID);
        assert_eq!(remove_staged(&store).unwrap(), go.len() as u64);
        assert_eq!(outside.path().read_dir().unwrap().count(), 1);
        assert!(go.iter().all(|path| !root.join(path).exists()), "{go:?}");
        assert!(stay.iter().all(|path| root.join(path).exists()), "{stay:?}");
    }
}
