//! Atomic folders: a folder appears under its name only when it is complete, with all of its files at once.
//!
//! The folder is written next to its target under a hidden name. [`AtomicFolder::publish`] syncs every file and then
//! swaps the two folders atomically (`renameat2` with `RENAME_EXCHANGE`, `renamex_np` with `RENAME_SWAP`). If the
//! process is killed or the power fails at any moment:
//!
//! - The name refers to the old folder or to the new one, each complete; it is never missing, and never a mixture.
//! - A reader that opens the files one after the other during the swap may get some old and some new ones. A program
//!   that holds the folder open, or opens all files before it reads them, can detect this by the folder's inode. Files
//!   that are already open stay readable.
//!
//! If the file system cannot swap (some network file systems), the old folder is moved aside and the new one is moved
//! in. Between the two renames the name is missing for an instant; [`recover`] restores the old folder if a kill fell
//! in between.
//!
//! When a folder is replaced or removed, only files with names of its [`FolderKind`] are deleted. A folder with other
//! files is not replaced, and files added meanwhile stay.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::atomic::{TEMPORARY, folder_of, lock_temporary, remove_leftovers, sync_name};
use super::attributes::{copy_attributes, create_folder, follow_links};
use crate::files;

/// Suffix of an old folder that is moved aside on file systems without swap.
const ASIDE: &str = ".couplet-old";

/// A kind of folder that couplet creates and removes.
#[derive(Debug)]
pub struct FolderKind {
    /// The name in messages, for example `a model`.
    pub name: &'static str,
    /// The file that identifies such a folder.
    pub marker: &'static str,
    /// Returns true for file names of such a folder. Files with other names are never removed.
    pub has: fn(&str) -> bool,
}

impl FolderKind {
    /// Returns the name of an entry that does not belong to this kind of folder, if any.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn foreign_in(&self, folder: &Path) -> io::Result<Option<OsString>> {
        for entry in folder.read_dir()? {
            let entry = entry?;
            if !self.is_own(&entry)? {
                return Ok(Some(entry.file_name()));
            }
        }
        Ok(None)
    }

    /// Removes the files that belong to this kind of folder, and the folder if it is empty then.
    ///
    /// # Errors
    /// A file or folder that cannot be removed.
    pub fn remove(&self, folder: &Path) -> io::Result<()> {
        for entry in folder.read_dir()? {
            let entry = entry?;
            if self.is_own(&entry)? {
                // Another process may be removing the same folder.
                ignore_missing(fs::remove_file(entry.path()))?;
            }
        }
        // The target of a symbolic link is kept for reuse.
        if folder.is_symlink() {
            return Ok(());
        }
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                tracing::warn!("{} stays, with files in it that couplet did not write", folder.display());
                Ok(())
            }
            removed => ignore_missing(removed),
        }
    }

    fn is_own(&self, entry: &DirEntry) -> io::Result<bool> {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Files that a killed run was writing into the folder have a temporary name.
        Ok(!entry.file_type()?.is_dir() && (self.has)(without_temporary(&name).unwrap_or(&name)))
    }
}

/// Treats a missing file as removed.
fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// Returns the final name of a file that has a temporary one.
fn without_temporary(name: &str) -> Option<&str> {
    let (name, id) = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?.rsplit_once('.')?;
    Uuid::try_parse(id).is_ok().then_some(name)
}

/// A folder that is not published yet. Dropping it before [`AtomicFolder::publish`] removes it.
#[derive(Debug)]
pub struct AtomicFolder {
    kind: &'static FolderKind,
    target: PathBuf,
    temporary: PathBuf,
    /// Distinguishes the folder of a live process from leftovers of a killed one.
    _lock: Option<File>,
}

impl AtomicFolder {
    /// Creates a temporary folder for `target`, and the parent folder if needed. Removes leftovers of killed runs.
    ///
    /// # Errors
    /// A folder that cannot be created; a target that is a file.
    pub fn create(target: &Path, kind: &'static FolderKind) -> io::Result<Self> {
        // Symbolic links are followed: their target is replaced, not the link.
        let target = &follow_links(target)?;
        let (parent, name) = parts(target)?;
        if target.is_file() {
            return Err(io::Error::other("it is a file"));
        }
        fs::create_dir_all(parent)?;
        recover(target, kind)?;
        remove_leftovers(parent, &format!(".{name}."), |path| kind.remove(path));
        let temporary = parent.join(format!(".{name}.{}{TEMPORARY}", Uuid::new_v4().simple()));
        create_folder(&temporary, target)?;
        // Where folders cannot be locked, leftovers of a killed run stay until they are removed by hand.
        let lock = files::open_own(&temporary).ok().filter(lock_temporary);
        Ok(Self { kind, target: target.to_owned(), temporary, _lock: lock })
    }

    /// Returns the folder to write the files to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the files and replaces the target with the folder.
    ///
    /// # Errors
    /// A full or missing disk; files in the old folder that do not belong to this kind. The target is unchanged then,
    /// unless the error is `NotDurable`.
    pub fn publish(self) -> io::Result<()> {
        self.publish_with(exchange)
    }

    fn publish_with(self, exchange: fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
        for entry in self.temporary.read_dir()? {
            files::open_own(&entry?.path())?.sync_all()?;
        }
        let folder = files::open_own(&self.temporary)?;
        copy_attributes(&folder, &self.target)?;
        folder.sync_all()?;
        if !self.target.exists() {
            fs::rename(&self.temporary, &self.target)?;
            return sync_name(&self.target);
        }
        if let Some(name) = self.kind.foreign_in(&self.target)? {
            return Err(io::Error::other(format!("it {}", foreign(&name, self.kind))));
        }
        if exchange(&self.temporary, &self.target).is_ok() {
            // The old folder has the temporary name now, and is removed when `self` is dropped.
            return sync_name(&self.target);
        }
        let aside = aside(&self.target)?;
        fs::rename(&self.target, &aside)?;
        if let Err(e) = fs::rename(&self.temporary, &self.target) {
            fs::rename(&aside, &self.target)?;
            return Err(e);
        }
        sync_name(&self.target)?;
        self.kind.remove(&aside)
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        let _ = self.kind.remove(&self.temporary);
    }
}

/// Restores a folder that a killed run had moved aside before it moved in the new one.
///
/// # Errors
/// A folder that cannot be renamed or removed.
pub fn recover(target: &Path, kind: &FolderKind) -> io::Result<()> {
    let aside = aside(target)?;
    match (aside.exists(), target.exists()) {
        (true, false) => fs::rename(&aside, target),
        (true, true) => kind.remove(&aside),
        (false, _) => Ok(()),
    }
}

/// Returns the reason why a folder may not replace `target`, if there is one: `target` is neither empty nor of the same
/// kind, or it has files that would be lost.
#[must_use]
pub fn irreplaceable(target: &Path, kind: &FolderKind) -> Option<String> {
    let is_empty = || target.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if !target.exists() || is_empty() {
        return None;
    }
    if !target.join(kind.marker).exists() {
        return Some(format!(
            "is there and is not the folder of {}, which would replace it; name a folder that is not there yet",
            kind.name
        ));
    }
    match kind.foreign_in(target) {
        Ok(name) => name.map(|name| foreign(&name, kind)),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

/// Builds the message for a folder that cannot be replaced because of one of its entries.
fn foreign(name: &OsStr, kind: &FolderKind) -> String {
    let name = name.display();
    format!(
        "has `{name}`, which is no file of {} and would be lost; move it elsewhere, or name another folder",
        kind.name
    )
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

fn aside(target: &Path) -> io::Result<PathBuf> {
    let (parent, name) = parts(target)?;
    Ok(parent.join(format!(".{name}{ASIDE}")))
}

/// Returns the parent of a folder and the folder's name.
fn parts(target: &Path) -> io::Result<(&Path, String)> {
    let name = target.file_name().ok_or_else(|| io::Error::other("it is not the name of a folder"))?;
    Ok((folder_of(target), name.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: FolderKind = FolderKind { name: "a test", marker: "a", has: |name| name == "a" };

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn begin(target: &Path, text: &str) -> AtomicFolder {
        let folder = AtomicFolder::create(target, &KIND).unwrap();
        fs::write(folder.path().join("a"), text).unwrap();
        folder
    }

    fn refuse(_: &Path, _: &Path) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    #[test]
    fn replaces_the_folder_with_and_without_an_atomic_exchange() {
        for exchange in [exchange, refuse] {
            let parent = tempfile::tempdir().unwrap();
            let target = parent.path().join("new/model");
            for text in ["first", "second", "third"] {
                let folder = begin(&target, text);
                assert_ne!(fs::read_to_string(target.join("a")).unwrap_or_default(), text);
                folder.publish_with(exchange).unwrap();
                assert_eq!(fs::read_to_string(target.join("a")).unwrap(), text);
                assert_eq!(names(target.parent().unwrap()), ["model"]);
            }
        }
    }

    #[test]
    fn files_of_others_keep_a_folder_from_being_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        begin(&target, "old").publish().unwrap();
        assert_eq!(irreplaceable(&target, &KIND), None);
        fs::write(target.join("notes"), "mine").unwrap();
        assert!(irreplaceable(&target, &KIND).unwrap().starts_with("has `notes`, which is no file of a test"));
        let refused = begin(&target, "new").publish().unwrap_err().to_string();
        assert!(refused.starts_with("it has `notes`"), "{refused}");
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "old");
        assert_eq!(names(parent.path()), ["model"]);
        fs::remove_file(target.join("notes")).unwrap();
        fs::create_dir(target.join("a folder")).unwrap();
        assert!(irreplaceable(&target, &KIND).is_some());
    }

    #[test]
    fn files_of_others_stay_when_a_folder_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("old");
        fs::create_dir_all(folder.join("below")).unwrap();
        let half = format!(".a.{}{TEMPORARY}", Uuid::new_v4().simple());
        for name in ["a", "notes", "below/a", &half, ".a.mine.couplet-tmp"] {
            fs::write(folder.join(name), "").unwrap();
        }
        KIND.remove(&folder).unwrap();
        assert_eq!(names(&folder), [".a.mine.couplet-tmp", "below", "notes"]);
        assert!(folder.join("below/a").exists());
        fs::remove_dir_all(folder.join("below")).unwrap();
        for name in [".a.mine.couplet-tmp", "notes"] {
            fs::remove_file(folder.join(name)).unwrap();
        }
        KIND.remove(&folder).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn is_always_there_while_it_is_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        begin(&target, "0").publish().unwrap();
        // Some file systems cannot swap folders; they do not give this guarantee.
        let probe = begin(&parent.path().join("probe"), "");
        if exchange(probe.path(), &target).is_err() {
            return;
        }
        exchange(probe.path(), &target).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut last = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let read: u32 = fs::read_to_string(target.join("a")).unwrap().parse().unwrap();
                    assert!(read >= last);
                    last = read;
                }
            });
            for text in 1..200 {
                begin(&target, &text.to_string()).publish().unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().unwrap();
        });
    }

    #[cfg(unix)]
    #[test]
    fn replaces_what_a_link_points_to() {
        let parent = tempfile::tempdir().unwrap();
        begin(&parent.path().join("v1"), "old").publish().unwrap();
        let link = parent.path().join("model");
        std::os::unix::fs::symlink(parent.path().join("v1"), &link).unwrap();
        begin(&link, "new").publish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(parent.path().join("v1/a")).unwrap(), "new");
    }

    #[test]
    fn puts_the_old_folder_back_after_a_kill_between_two_renames() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        begin(&target, "old").publish().unwrap();
        fs::rename(&target, aside(&target).unwrap()).unwrap();
        recover(&target, &KIND).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "old");
        assert_eq!(names(parent.path()), ["model"]);
    }

    #[test]
    fn removes_leftovers_of_killed_runs_but_not_of_live_ones() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        fs::create_dir(parent.path().join(format!(".model.1-0{TEMPORARY}"))).unwrap();
        let alive = begin(&target, "alive");
        let also_alive = begin(&target, "also alive");
        assert_eq!(names(parent.path()).len(), 2);
        drop((alive, also_alive));
        assert!(names(parent.path()).is_empty());
    }
}
