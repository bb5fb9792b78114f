//! The lock of a local folder: an operating-system lock on the file `lock.json`, released when its process ends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::who;
use super::holder::{Content, State};
use super::{Claim, Explained, Holder, LOCK, LockError};
use crate::files::{self, MAX_JSON};

/// The interval between attempts to take the lock.
const POLL: Duration = Duration::from_millis(200);

/// A lock that this process holds.
#[derive(Debug)]
pub(super) struct FileLock {
    path: PathBuf,
    file: File,
    content: Content,
}

impl FileLock {
    pub(super) async fn acquire(folder: &Path, claim: &Claim) -> Result<Self, LockError> {
        let path = folder.join(LOCK);
        let failed = |e: &io::Error| store_error(&path, e);
        fs::create_dir_all(folder).map_err(|e| failed(&e))?;
        let began = Instant::now();
        let mut logged = false;
        let file = loop {
            let file = files::open_with(File::options().create(true).read(true).write(true).truncate(false), &path);
            let file = file.map_err(|e| failed(&e))?;
            match file.try_lock() {
                // Another process has removed the file in the meantime, so a third one can lock a new file of that
                // name.
                Ok(()) if !is_at(&file, &path) => {}
                Ok(()) => break file,
                Err(TryLockError::WouldBlock) => {
                    let left = claim.wait.map(|wait| wait.saturating_sub(began.elapsed()));
                    let Some(left) = left.filter(|left| !left.is_zero()) else {
                        return Err(busy(folder, &path, claim).await);
                    };
                    if !logged {
                        let holder = who(read_holder(&path).await.as_deref());
                        tracing::info!("waiting for {}, in use by another run: {holder}", folder.display());
                        logged = true;
                    }
                    tokio::time::sleep(POLL.min(left)).await;
                }
                Err(TryLockError::Error(e)) => {
                    return Err(LockError::Unsafe {
                        place: folder.display().to_string(),
                        problem: format!(
                            "its file system cannot lock files ({e}), so two concurrent runs would not notice \
                             each other; use a folder on another disk, or an object store"
                        ),
                    });
                }
            }
        };
        let mut before = Vec::new();
        (&file).take(MAX_JSON).read_to_end(&mut before).map_err(|e| failed(&e))?;
        let found = Content::from_json(&before);
        if found.is_none() && !before.is_empty() {
            tracing::warn!("{} was not written by couplet, or is truncated; overwriting it", path.display());
        }
        let content = Content::after(found, Holder::this(&claim.run_id, &claim.pipeline), None);
        let mut lock = Self { path, file, content };
        lock.write()?;
        Ok(lock)
    }

    pub(super) fn left_behind(&self) -> &[Holder] {
        &self.content.left_behind
    }

    pub(super) fn settle(&mut self) -> Result<(), LockError> {
        self.content.left_behind.clear();
        self.write()
    }

    /// Checks that the locked file is still the one that others will try to lock.
    pub(super) fn check(&self) -> Result<(), LockError> {
        if is_at(&self.file, &self.path) {
            return Ok(());
        }
        let place = self.path.parent().unwrap_or(&self.path).display().to_string();
        Err(LockError::Lost { place, why: format!("{} was removed or replaced", self.path.display()) })
    }

    /// Records that the run has finished and releases the lock.
    pub(super) fn release(mut self) -> Result<(), LockError> {
        self.check()?;
        self.content.state = State::Released;
        self.write()
    }

    /// Writes the content in place. Renaming another file over it would leave the lock on the old one.
    fn write(&mut self) -> Result<(), LockError> {
        let json = self.content.to_json();
        let write = |file: &mut File| {
            file.rewind()?;
            file.write_all(&json)?;
            file.set_len(json.len() as u64)?;
            // After a power failure, too, the next run must know which run may have published.
            file.sync_all()
        };
        write(&mut self.file).map_err(|e| store_error(&self.path, &e))
    }
}

fn store_error(path: &Path, error: &io::Error) -> LockError {
    let place = path.parent().unwrap_or(path).display().to_string();
    LockError::Store { place, problem: Explained::of(error).in_words(|error| format!("{}: {error}", path.display())) }
}

async fn busy(folder: &Path, path: &Path, claim: &Claim) -> LockError {
    LockError::Busy { place: folder.display().to_string(), holder: read_holder(path).await, waited: claim.wait }
}

/// Reads the holder of the lock. Retries for 200 ms, as a run that has just taken the lock may not have written its
/// name yet.
async fn read_holder(path: &Path) -> Option<Box<Holder>> {
    for _ in 0..20 {
        let content = files::read(path, MAX_JSON).ok().and_then(|json| Content::from_json(&json));
        if let Some(content) = content.filter(|content| content.state == State::Held) {
            return Some(Box::new(content.holder));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

/// Returns true if the path leads to this very file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(file), Ok(path)) => inode(file) == inode(path),
        _ => false,
    }
}

/// Returns true if the path exists. Outside Unix an open file can usually not be removed.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}
