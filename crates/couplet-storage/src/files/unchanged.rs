//! A file that is replaced only if it has not changed since the run began.
//!
//! The parent folder is locked from the check to the replacement, so of two runs that replace the file, the second one
//! sees the change. On a file system that cannot lock folders, check and replacement are not atomic.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::atomic::folder_of;
use crate::files;

/// Maximum time to wait for another run that is replacing a file in the same folder, which takes a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why a file or object was not replaced.
pub const REPLACED: &str = "another run or program has replaced or removed it since this run began; what is there is kept. Run the same command again";

/// The version of a file at some moment; `None` if there was no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileVersion(Option<Version>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    bytes: u64,
    modified: SystemTime,
    inode: (u64, u64),
}

impl FileVersion {
    /// Returns the current version of the file at a path.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(found) => {
                Ok(Self(Some(Version { bytes: found.len(), modified: found.modified()?, inode: inode(&found) })))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file at `path` if it has not changed.
    ///
    /// # Errors
    /// The file has changed, or another run is replacing a file in the folder; any error of `replace`.
    pub fn replaced<T>(&self, path: &Path, replace: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        // Symbolic links are followed: their target is replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = files::open_own(folder_of(&target));
        let _locked = folder.map_or(Ok(None), |folder| lock(&folder).map(|()| Some(folder)))?;
        if Self::of(path)? != *self {
            return Err(io::Error::other(REPLACED));
        }
        replace()
    }
}

/// Locks a folder until the file is closed, if the file system supports it.
fn lock(folder: &File) -> io::Result<()> {
    let began = Instant::now();
    while let Err(TryLockError::WouldBlock) = folder.try_lock() {
        if began.elapsed() > LOCK_TIMEOUT {
            return Err(io::Error::other("another run is replacing a file in this folder and does not finish"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(unix)]
fn inode(found: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (found.dev(), found.ino())
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> (u64, u64) {
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_only_if_it_is_still_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.parquet");
        let write = |text: &str| fs::write(&path, text);
        let none = FileVersion::of(&path).unwrap();
        none.replaced(&path, || write("first")).unwrap();
        let first = FileVersion::of(&path).unwrap();
        for seen in [&none, &FileVersion::of(folder.path()).unwrap()] {
            let refused = seen.replaced(&path, || write("older")).unwrap_err();
            assert_eq!(refused.to_string(), REPLACED);
        }
        first.replaced(&path, || write("second")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        // A removed file counts as changed.
        let second = FileVersion::of(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(second.replaced(&path, || write("third")).is_err() && !path.exists());
    }
}
