//! Folders of a store, in which couplet owns only the files whose names begin with the store's id.
//!
//! All other files may belong to the user: they are neither read nor removed, and links are not followed. The local
//! object store follows links when it lists a folder, so local folders are read without it.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt};

use super::{Objects, ObjectsError, Trouble};
use crate::place::Place;

/// A file in a folder.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// Its path in the object store.
    pub path: Path,
    /// Its size in bytes.
    pub bytes: u64,
    /// The time of its last modification.
    pub modified: DateTime<Utc>,
}

/// The entries of a folder.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    /// Regular files.
    pub files: Vec<Entry>,
    /// The names of folders.
    pub folders: Vec<String>,
    /// The names of everything else: links, pipes, devices.
    pub others: Vec<String>,
}

impl Objects {
    /// Lists a folder. A folder that does not exist or is a link has no entries.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub async fn entries(&self) -> Result<Entries, ObjectsError> {
        let mut entries = Entries::default();
        let Place::Local(folder) = &self.place else {
            let listed = self.store.list_with_delimiter(Some(&self.root)).await.map_err(|e| self.error(&e))?;
            let name = |path: &Path| path.filename().unwrap_or_default().to_owned();
            entries.folders = listed.common_prefixes.iter().map(name).collect();
            let files = listed.objects.into_iter().map(|meta| Entry {
                name: name(&meta.location),
                path: meta.location,
                bytes: meta.size,
                modified: meta.last_modified,
            });
            entries.files = files.collect();
            return Ok(entries);
        };
        let failed = |e: &std::io::Error| ObjectsError::new(&self.place, Trouble::of(e), e.to_string());
        if !folder.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(entries);
        }
        for entry in fs::read_dir(folder).map_err(|e| failed(&e))? {
            let entry = entry.map_err(|e| failed(&e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = match entry.metadata() {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                metadata => metadata.map_err(|e| failed(&e))?,
            };
            if metadata.is_dir() {
                entries.folders.push(name);
            } else if metadata.is_file() {
                let modified = metadata.modified().map_err(|e| failed(&e))?.into();
                entries.files.push(Entry { path: self.path(&name), name, bytes: metadata.len(), modified });
            } else {
                entries.others.push(name);
            }
        }
        Ok(entries)
    }

    /// Removes a file, if it exists.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub async fn remove(&self, path: &Path) -> Result<(), ObjectsError> {
        match self.store.delete(path).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error_at(path, &e)),
        }
    }

    /// Removes a local folder if it is empty. Buckets have no empty folders.
    pub fn remove_if_empty(&self) {
        if let Place::Local(folder) = &self.place {
            // This fails for a link and for a folder that is not empty, as intended.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A store that couplet made, or a folder in it.
#[derive(Debug, Clone)]
pub struct StoreFolder {
    /// The place of the folder.
    pub objects: Objects,
    /// The store's id, the prefix of the names of its files.
    id: Arc<str>,
}

impl StoreFolder {
    /// Returns the folder at a place, for the store with this id.
    #[must_use]
    pub fn new(objects: Objects, id: &str) -> Self {
        Self { objects, id: id.into() }
    }

    /// Returns the store's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the subfolder of that name.
    #[must_use]
    pub fn folder(&self, name: &str) -> Self {
        Self { objects: self.objects.folder(name), id: Arc::clone(&self.id) }
    }

    /// Returns the path of the file named `ID-rest`.
    #[must_use]
    pub fn path(&self, rest: &str) -> Path {
        self.objects.path(&format!("{}-{rest}", self.id))
    }

    /// Lists the files of this folder that couplet wrote, with names that lack the store's id.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub async fn files(&self) -> Result<Vec<Entry>, ObjectsError> {
        let files = self.objects.entries().await?.files.into_iter().filter_map(|file| {
            let name = file.name.strip_prefix(&*self.id)?.strip_prefix('-')?.to_owned();
            Some(Entry { name, ..file })
        });
        Ok(files.collect())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_regular_files_of_the_store_are_listed() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("store");
        let outside = temporary.path().join("outside");
        fs::create_dir_all(folder.join("a")).unwrap();
        fs::create_dir(&outside).unwrap();
        for name in ["a/id-1.json", "a/other-1.json", "a/id", "../outside/id-2.json"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(outside.join("id-2.json"), folder.join("a/id-3.json")).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("b")).unwrap();
        let store = StoreFolder::new(Objects::open(&Place::Local(folder.clone())).unwrap(), "id");
        let names = async |name: &str| {
            let files = store.folder(name).files().await.unwrap();
            files.into_iter().map(|file| file.name).collect::<Vec<_>>()
        };
        assert_eq!(names("a").await, ["1.json"]);
        assert!(names("b").await.is_empty() && names("none").await.is_empty());
        let entries = store.objects.entries().await.unwrap();
        assert_eq!((entries.folders, entries.others), (vec!["a".to_owned()], vec!["b".to_owned()]));
        store.folder("b").objects.remove_if_empty();
        store.folder("a").objects.remove_if_empty();
        assert!(folder.join("b").is_symlink() && folder.join("a").is_dir());
    }
}
