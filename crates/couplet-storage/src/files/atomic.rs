//! Atomic files: a file appears under its name only when it is complete.
//!
//! The file is written next to its target under a hidden name, without the extension that readers look for, and renamed
//! at the end. The writer holds a lock on it. The lock lets a later run tell the file of a live run from the leftovers
//! of a killed one, which it removes.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;

use super::attributes::{copy_attributes, follow_links, replacement_options};
use crate::files;

/// The suffix of the names of incomplete files and folders.
pub const TEMPORARY: &str = ".couplet-tmp";

/// Maximum time for a process to lock a file or folder after creating it.
const LOCK_GRACE: Duration = Duration::from_millis(100);

/// Age after which a file or folder must have been locked by the process that created it.
const MAX_UNLOCKED_AGE: Duration = Duration::from_secs(10);

/// A file that is not published yet. Dropping it before [`AtomicFile::publish`] removes it.
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Creates a temporary file for `target`, and the folder of `target` if needed.
    ///
    /// # Errors
    /// A folder that cannot be created or written.
    pub fn create(target: &Path) -> io::Result<Self> {
        // Symbolic links are followed: their target is replaced, not the link.
        let target = &follow_links(target)?;
        let folder = folder_of(target);
        fs::create_dir_all(folder)?;
        let name = target.file_name().ok_or_else(|| io::Error::other("it is not the name of a file"))?;
        if target.is_dir() {
            return Err(io::Error::other("it is a folder"));
        }
        if target.exists() && !target.is_file() {
            return Err(io::Error::other("it is a device or a pipe, and only a file can be replaced"));
        }
        let prefix = format!(".{}.", name.to_string_lossy());
        remove_leftovers(folder, &prefix, |path| fs::remove_file(path));
        let temporary = folder.join(format!("{prefix}{}{TEMPORARY}", Uuid::new_v4().simple()));
        let file = files::open_with(&mut replacement_options(target), &temporary)?;
        // Some file systems have no locks; there, leftovers of a killed run stay until they are removed by hand.
        let _ = lock_temporary(&file);
        Ok(Self { target: target.to_owned(), temporary, file: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// Syncs the file and replaces the target with it. Returns its size in bytes.
    ///
    /// # Errors
    /// A full or missing disk. The target is unchanged then, unless the error is `NotDurable`.
    pub fn publish(mut self) -> io::Result<u64> {
        let Some(writer) = self.file.take() else { return Err(io::Error::other("published twice")) };
        let published = writer.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| {
            copy_attributes(&file, &self.target)?;
            // Otherwise a power failure could keep the rename and lose the contents.
            file.sync_all()?;
            let bytes = file.metadata()?.len();
            fs::rename(&self.temporary, &self.target)?;
            Ok(bytes)
        });
        if published.is_err() {
            let _ = fs::remove_file(&self.temporary);
        }
        let bytes = published?;
        sync_name(&self.target)?;
        Ok(bytes)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(0), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// The part of error messages about a name that may not survive a power failure.
pub const NOT_DURABLE: &str = "the disk did not confirm that it is durable";

/// The error for a new file or folder that a power failure may revert to the old one.
#[derive(Debug, Error)]
#[error(
    "the new version is there, but {NOT_DURABLE} ({0}): a loss of power may bring the old one back; check the disk, and \
     run the same command again"
)]
pub struct NotDurable(io::Error);

impl NotDurable {
    /// Creates the warning for a failed sync.
    #[must_use]
    pub fn new(error: &io::Error) -> Self {
        Self(io::Error::new(error.kind(), error.to_string()))
    }
}

/// Makes the name of a file or folder durable by syncing its parent folder.
///
/// # Errors
/// [`NotDurable`]
pub(super) fn sync_name(target: &Path) -> io::Result<()> {
    files::sync_folder(folder_of(target)).map_err(|error| io::Error::other(NotDurable(error)))
}

/// Returns the parent folder of a file or folder.
#[must_use]
pub fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Locks a temporary file or folder. Returns true if that succeeded.
#[must_use]
pub fn lock_temporary(file: &File) -> bool {
    // Another process that tests the lock holds it for a moment.
    for pause in 1..8 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(pause)),
            tried => return tried.is_ok(),
        }
    }
    false
}

/// Removes leftovers of killed runs, whose names begin with `prefix`.
pub fn remove_leftovers(folder: &Path, prefix: &str, remove: impl Fn(&Path) -> io::Result<()>) {
    let Ok(entries) = folder.read_dir() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(TEMPORARY) {
            let Ok(opened) = files::open_own(&entry.path()) else { continue };
            // False if a live run holds it. If the lock cannot be tested, nothing is removed.
            let is_free = || opened.try_lock().is_ok();
            let mut free = is_free();
            if free && is_new_and_empty(&entry.path()) {
                // The process that created it may not have locked it yet.
                let _ = opened.unlock();
                std::thread::sleep(LOCK_GRACE);
                free = is_free();
            }
            // The process may have ended just now and removed it.
            if free && entry.path().exists() {
                tracing::info!("removing {}, left by a run that was killed", entry.path().display());
                let _ = remove(&entry.path());
            }
        }
    }
}

/// Returns true if a file or folder is empty and new.
fn is_new_and_empty(path: &Path) -> bool {
    let empty = || path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    path.metadata().is_ok_and(|about| {
        let is_empty = if about.is_dir() { empty() } else { about.len() == 0 };
        // A time in the future is from a clock that was set back since; it counts as new.
        is_empty && about.modified().is_ok_and(|at| at.elapsed().map_or(true, |age| age < MAX_UNLOCKED_AGE))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_the_file_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/out.parquet");
        for text in ["first", "second"] {
            let mut file = AtomicFile::create(&target).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert_ne!(fs::read(&target).unwrap_or_default(), text.as_bytes());
            assert_eq!(file.publish().unwrap(), text.len() as u64);
            assert_eq!(fs::read(&target).unwrap(), text.as_bytes());
        }
        assert_eq!(names(target.parent().unwrap()), ["out.parquet"]);
    }

    #[test]
    fn leaves_nothing_when_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&folder.path().join("out.parquet")).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        drop(file);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn removes_leftovers_of_killed_runs_but_not_of_live_ones() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out.parquet");
        fs::write(folder.path().join(format!(".out.parquet.1-0{TEMPORARY}")), "killed").unwrap();
        let alive = AtomicFile::create(&target).unwrap();
        let also_alive = AtomicFile::create(&target).unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        drop((alive, also_alive));
    }

    #[test]
    fn what_is_not_locked_yet_is_no_remains() {
        let folder = tempfile::tempdir().unwrap();
        let begun = folder.path().join(format!(".out.parquet.1-0{TEMPORARY}"));
        let file = File::create_new(&begun).unwrap();
        let locking = std::thread::spawn(move || {
            std::thread::sleep(LOCK_GRACE / 10);
            assert!(lock_temporary(&file));
            file
        });
        drop(AtomicFile::create(&folder.path().join("out.parquet")).unwrap());
        assert!(begun.exists());
        drop(locking.join().unwrap());
        drop(AtomicFile::create(&folder.path().join("out.parquet")).unwrap());
        assert!(!begun.exists());
    }
}
